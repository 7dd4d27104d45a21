"""The Kubernetes API: requests, watches, live objects, Leases. Only this package calls it."""
