"""The service: many runs below one folder, on one page, at one address for Prometheus.

stabwatch serve ROOT
"""

from stabwatch.serve.service import serve_folder as serve_folder
