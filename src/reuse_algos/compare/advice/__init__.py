"""What the runs of an archive advise for the next one."""
