"""Object stores: addresses, and the one client for S3, GCS, Azure and HTTP."""
