"""Writes HTML files from sections: the report, the comparison, the preview and the index pages."""
