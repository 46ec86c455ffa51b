"""Files for Docker, Kubernetes and Slurm: as far as they can be checked without any of them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXPORTERS = ROOT / "exporters"
PORT = 9478


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    text = re.sub(r"^#.*\n", "", (EXPORTERS / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word]


def test_the_image_has_the_requirements_of_the_package_but_torch():
    text = (ROOT / "pyproject.toml").read_text()
    required = re.findall(r'"([^"]+)"', text.partition("\ndependencies = [")[2].partition("]")[0])
    installs = [shlex.split(rest) for word, rest in dockerfile() if word == "RUN"]
    listed = next(words for words in installs if "--no-deps" not in words)[3:]
    assert sorted(listed) == sorted(name for name in required if not name.startswith("torch"))


def test_the_dockerfile_names_what_is_there():
    instructions = dockerfile()
    assert {word for word, _ in instructions} <= {"FROM", "RUN", "COPY", "EXPOSE", "ENTRYPOINT", "CMD"}
    for _, rest in (one for one in instructions if one[0] == "COPY"):
        *sources, _ = rest.split()
        assert all((ROOT / source).exists() for source in sources), rest
    built = dict(instructions)
    assert built["EXPOSE"] == str(PORT)
    words = [*yaml.safe_load(built["ENTRYPOINT"]), *yaml.safe_load(built["CMD"])]
    assert words[:2] == ["stabwatch", "agent"]


def test_the_compose_file_names_what_is_there():
    data = yaml.safe_load((EXPORTERS / "compose.yaml").read_text())
    known = {"image", "build", "hostname", "user", "volumes", "ports", "restart", "command"}
    for name, service in data["services"].items():
        assert set(service) <= known, name
        assert ("image" in service) != ("build" in service)
        assert "image" not in service or re.search(r":v?\d+\.\d+", service["image"]), "a version is named"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "nothing is open to the network"
        for volume in service["volumes"]:
            source = volume.rpartition(":/")[0]
            assert source.startswith("${STABWATCH_RUNS:-") or (EXPORTERS / source).exists(), volume
    build = data["services"]["stabwatch"]["build"]
    assert (EXPORTERS / build["context"] / build["dockerfile"]).is_file()


def mounted(service: dict[str, Any], root: Path) -> None:
    """Lay out below `root` what the volumes of a service put into its container."""
    for volume in service["volumes"]:
        source, _, target = volume.removesuffix(":ro").rpartition(":/")
        place = root / target
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.startswith("${STABWATCH_RUNS"):
            place.mkdir()
        else:
            place.symlink_to((EXPORTERS / source).resolve())


@pytest.mark.prometheus
def test_in_its_container_prometheus_finds_rules_runs_and_the_alertmanager(tmp_path):
    services = yaml.safe_load((EXPORTERS / "compose.yaml").read_text())["services"]
    mounted(services["prometheus"], tmp_path)
    config = tmp_path / services["prometheus"]["command"].removeprefix("--config.file=/")
    copy = config.resolve().read_text()
    config.unlink()
    config.write_text(copy)  # its paths are relative to the file: not to where a link leads
    (tmp_path / "etc/stabwatch/stabwatch-runs/targets/run.json").write_text('[{"targets": ["stabwatch:9478"]}]')
    done = subprocess.run(["promtool", "check", "config", str(config)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "SUCCESS: 1 rule files found" in done.stdout, done.stdout + done.stderr
    read = yaml.safe_load(copy)
    ways = [read["alerting"]["alertmanagers"][0], read["scrape_configs"][0]]
    (alertmanager,), (agent,) = (
        [p for f in way["file_sd_configs"][0]["files"] for p in config.parent.glob(f)] for way in ways
    )
    for found, port in ((alertmanager, 9093), (agent, PORT)):
        (target,) = json.loads(found.read_text())[0]["targets"]
        name, _, at = target.partition(":")
        assert name in services and int(at) == port
        assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_in_its_container_grafana_finds_dashboards_and_prometheus(tmp_path):
    services = yaml.safe_load((EXPORTERS / "compose.yaml").read_text())["services"]
    mounted(services["grafana"], tmp_path)
    (dashboards,) = (tmp_path / "etc/grafana/provisioning/dashboards").glob("*.y*ml")
    (folder,) = yaml.safe_load(dashboards.read_text())["providers"]
    assert len(list((tmp_path / folder["options"]["path"].lstrip("/")).glob("*.json"))) == 6
    (sources,) = (tmp_path / "etc/grafana/provisioning/datasources").glob("*.y*ml")
    (source,) = yaml.safe_load(sources.read_text())["datasources"]
    assert source["isDefault"] and source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090" and services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]


def manifests() -> dict[str, Any]:
    found = yaml.safe_load_all((EXPORTERS / "kubernetes.yaml").read_text())
    return {one["kind"]: one for one in found}


def test_the_manifests_fit_together():
    kinds = manifests()
    assert set(kinds) == {"PersistentVolumeClaim", "Job", "PodMonitor"}
    pod = kinds["Job"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (endpoint,) = kinds["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert kinds["PodMonitor"]["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {endpoint["port"]: PORT}
    env = {one["name"]: one for one in container["env"]}
    secret = env["STABWATCH_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert endpoint["basicAuth"]["password"] == secret
    assert endpoint["basicAuth"]["username"]["name"] == secret["name"]
    assert endpoint["honorLabels"] is True
    (volume,) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == kinds["PersistentVolumeClaim"]["metadata"]["name"]
    assert [(m["name"], m["mountPath"]) for m in container["volumeMounts"]] == [
        (volume["name"], env["STABWATCH_ROOT"]["value"])
    ]
    subprocess.run(["sh", "-n", "-c", container["command"][2]], check=True)


def test_the_rules_are_the_spec_of_a_prometheus_rule():
    """docs/kubernetes.md puts them below `spec:`."""
    rules = (ROOT / "alerts" / "stabwatch.rules.yaml").read_text()
    whole = yaml.safe_load("spec:\n" + "".join(f"  {line}\n" for line in rules.splitlines()))
    assert whole["spec"]["groups"] == yaml.safe_load(rules)["groups"]


def test_the_slurm_script_is_a_script():
    path = EXPORTERS / "slurm.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert options and all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for option in options)
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first:]), "Slurm ignores options after a command"


@pytest.mark.parametrize("name", ["docker", "kubernetes", "slurm"])
def test_the_pages_name_files_that_are_there(name):
    page = (ROOT / "docs" / f"{name}.md").read_text()
    for path in re.findall(r"(?:-f |\()(?:\.\./)?((?:exporters|alerts)/[\w.]+)", page):
        assert (ROOT / path).exists(), path
