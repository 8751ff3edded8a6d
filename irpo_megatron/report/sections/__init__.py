"""The sections of the page, a file each: from the run as read to text, charts and tables."""
