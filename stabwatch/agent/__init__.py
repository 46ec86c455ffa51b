"""The agent: follows a run log in a process of its own; serves Prometheus, evaluates the rules, shows the live page.

python -m stabwatch.agent RUN_DIR
"""

from stabwatch.agent.service import serve as serve
