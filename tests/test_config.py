"""Settings: keywords over environment over file over defaults, and errors that say the way out."""

from __future__ import annotations

import pytest

from stabwatch.config import Config
from stabwatch.errors import ConfigError


def test_keywords_win_over_environment_over_file(tmp_path):
    path = tmp_path / "stabwatch.yaml"
    path.write_text("port: 1\nlinger: 2\noverhead_budget: 0.03\n")
    environ = {"STABWATCH_PORT": "5", "STABWATCH_LINGER": "6", "UNRELATED": "x"}
    config = Config.load(path, environ, linger=7)
    assert (config.port, config.linger, config.overhead_budget) == (5, 7.0, 0.03)


@pytest.mark.parametrize(("text", "value"), [("0", False), ("off", False), ("True", True), ("yes", True)])
def test_switches_are_read_as_people_write_them(text, value):
    assert Config.load(None, {"STABWATCH_AGENT": text}).agent is value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prot": 1}, r"There is no setting `prot`\. Settings: .*port"),
        ({"port": "web"}, "`port` must be a int, and is 'web'"),
        ({"port": 70000}, "`port` must be between 0 and 65535, and is 70000"),
        ({"agent": "perhaps"}, "`agent` must be a bool, and is 'perhaps'"),
        ({"reduce": "mean"}, "`reduce` must be 'auto' or 'never', and is 'mean'"),
        ({"linger": -1}, "`linger` must be zero or more seconds"),
        ({"include": "("}, "`include` must be a regular expression"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config.load(settings, {})


def test_a_file_that_is_missing_or_no_mapping_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        Config.load(tmp_path / "nowhere.yaml", {})
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold `name: value` lines, and holds a list"):
        Config.load(tmp_path / "list.yaml", {})
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path / "broken.yaml", {})
