"""Visualization reports: what a run learned, as a static page that opens from disk.

One file per visualization. Each holds pure functions from arrays to arrays, and a `part` that
makes a section of the page from a `Subject`; `job.PARTS` lists them in the order of the page.
"""
