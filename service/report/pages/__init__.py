"""From sections to HTML files: the report, the comparison, the preview and the index pages."""
