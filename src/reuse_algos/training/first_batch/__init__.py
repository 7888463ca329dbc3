"""What the first batch shows: the task, the rows, and the views."""
