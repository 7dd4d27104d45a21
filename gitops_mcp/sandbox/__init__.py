"""An embedded single-node Kubernetes cluster for demos and tests, bound to loopback."""
