"""The sections of the report page, one per file."""
