"""What a run found, as one file to read (`report.html`) and two to compute with (`results.json`, `metrics.jsonl`)."""
