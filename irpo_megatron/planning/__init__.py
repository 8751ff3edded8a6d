"""What a run will take, before it runs: memory, FLOPs, time, disk, and the layouts that fit."""
