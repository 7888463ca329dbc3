"""Keeping an archive: leases, garbage collection, removal, copying and verification."""
