"""What people see of a job: tables and progress, on a terminal and in a notebook."""
