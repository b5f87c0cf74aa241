"""The dashboard: pages for people, made on the server, over the same store and lifecycle as the API."""
