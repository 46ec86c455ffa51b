"""The agent: follows a run log in its own process, serves Prometheus, evaluates the rules, and serves the live page.

python -m stabwatch.agent RUN_DIR
"""

from stabwatch.agent.service import serve as serve
