"""The service on Ray Serve: a front that takes requests, encoders and answerers, each as many as there is work for."""
