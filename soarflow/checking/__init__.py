"""What `soarflow check` says of a job before anything is paid for: which host takes it, what is
wrong, what is hardly meant, what it costs."""
