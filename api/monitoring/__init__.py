"""What Prometheus scrapes: the requests of this process, and the service as the database knows it."""
