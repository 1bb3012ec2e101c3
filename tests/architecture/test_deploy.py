"""What is deployed fits the product: settings, commands, routes, files, and nobody is root."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
import yaml  # type: ignore[import-untyped]

from contourcast.cli import app
from contourcast.service.settings import FILE_VARIABLE, ServiceSettings
from support.data import REPOSITORY, peer_module, require
from support.topology import VARIABLE, command_of, composed, environment_of

DOCKER: Final = REPOSITORY / "docker"
DEPLOY: Final = REPOSITORY / "deploy"
RUNBOOK: Final = REPOSITORY / "docs" / "runbook.md"
BASE: Final = DEPLOY / "kubernetes" / "base"
SCRIPTS: Final = sorted([*DOCKER.glob("*.sh"), *DEPLOY.rglob("*.sh")])
UNITS: Final = sorted((DEPLOY / "systemd").glob("contourcast-*"))
OURS: Final = ("api", "dicom-node", "worker-cpu", "worker-gpu")
# How the runbook calls us.
CALL: Final = re.compile(
    r"(?:^contourcast|-- contourcast|run --rm (?:api|worker-cpu)) ([a-z][^|&;#>]*)"
)
SECRETS: Final = {
    "POSTGRES_PASSWORD": "p",
    "CONTOURCAST_ORTHANC_PASSWORD": "o",
    "DEBIAN_DIGEST": "sha256:0",
    "NODE_DIGEST": "sha256:0",
    "POSTGRES_IMAGE": "postgres@sha256:0",
    "NGINX_IMAGE": "nginx@sha256:0",
}


def shipped() -> list[Path]:
    """Every file that a site deploys by."""
    found = [p for folder in (DOCKER, DEPLOY) for p in folder.rglob("*") if p.is_file()]
    return [
        RUNBOOK,
        *(p for p in found if p.name != "secrets.env" and "__pycache__" not in p.parts),
    ]


def lint(program: str) -> str:
    """A linter, beside this Python or on the path."""
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    require("peer", found is not None, f"{program} is not installed: make .venv/.stamp-test")
    return str(found)


# Variables and commands


def test_every_variable_that_is_set_or_told_of_is_a_setting() -> None:
    orthanc = "".join(p.read_text() for p in (DEPLOY / "orthanc").iterdir() if p.is_file())
    known = {
        *(f"CONTOURCAST_{name.upper()}" for name in ServiceSettings.model_fields),
        *re.findall(r"CONTOURCAST_[A-Z0-9_]+", orthanc),
        FILE_VARIABLE,
        "CONTOURCAST_VERSION",  # of the image
    }
    for path in shipped():
        used = set(re.findall(r"\bCONTOURCAST_[A-Z0-9_]+\b", path.read_text()))
        assert used <= known, f"{path.name}: {sorted(used - known)}"


@pytest.mark.parametrize("service", OURS)
def test_the_settings_take_what_compose_gives(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "contourcast.toml"
    shutil.copy(DOCKER / "contourcast.toml", site)
    places = {"/etc/contourcast/contourcast.toml": str(site)}
    given = environment_of(service, SECRETS, places)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = ServiceSettings()
    assert settings.database_url == "postgresql://contourcast:p@postgres:5432/contourcast"
    assert settings.data_folder == Path("/data")
    deliver = "--queues" in (command := command_of(service)) and "deliver" in command[-1]
    wanted = {getattr(one, "password_env", None) for one in settings.destinations} - {None}
    assert (wanted <= given.keys()) == deliver, "only who delivers is told the passwords for it"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Where ``contourcast`` is called, and with which words."""
    for service in OURS:
        yield f"compose {service}", command_of(service)
    for document in manifests():
        for container in containers(document):
            if container["image"].startswith("contourcast"):
                yield f"kubernetes {document['metadata']['name']}", container["args"]
    for unit in UNITS:
        for line in re.findall(r"^ExecStart=\S*/contourcast (.*)$", unit.read_text(), re.M):
            yield unit.name, shlex.split(line)
    (line,) = re.findall(r'run --rm -T api (.*)\)"$', (DOCKER / "setup.sh").read_text(), re.M)
    yield "setup.sh", shlex.split(line)
    (line,) = re.findall(
        r"^CMD (\[.*\])$", (DOCKER / "Dockerfile").read_text().split("AS contourcast")[1], re.M
    )
    yield "Dockerfile", json.loads(line)
    for line in re.findall(r"^    (.*)$", RUNBOOK.read_text(), re.M):
        for call in CALL.findall(line):
            yield f"runbook: {line}", shlex.split(call)


def test_every_command_that_is_called_exists_with_its_options() -> None:
    called = list(commands())
    assert len({where for where, _ in called}) > 15
    for where, words in called:
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands"):
            assert rest, where
            assert rest[0] in command.commands, f"{where}: {rest[0]}"
            command = command.commands[rest.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        given = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert given <= options, f"{where}: {sorted(given - options)}"


def test_each_route_that_is_asked_is_one() -> None:
    routes = set(json.loads((REPOSITORY / "docs" / "openapi.json").read_text())["paths"])
    asked = set()
    for path in shipped():
        asked |= set(
            re.findall(r"(?<=[ :\d\"'`=])(/(?:v1|health)/[a-z/-]+|/metrics)\b", path.read_text())
        )
    assert {"/health/live", "/health/ready", "/v1/orthanc/events", "/metrics"} <= asked
    for one in asked:
        assert any(route == one or route.startswith(f"{one}/") for route in routes), one


# The image


def stages() -> dict[str, str]:
    """The text of each stage of the Dockerfile."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", (DOCKER / "Dockerfile").read_text(), flags=re.M)
    return {parts[i + 1]: parts[i] + "\n" + parts[i + 2] for i in range(1, len(parts), 3)}


def test_images_are_pinned_run_as_nobody_and_are_asked_how_they_are() -> None:
    found = stages()
    assert set(found) == {"page", "build", "orthanc", "contourcast"}
    for name, text in found.items():
        image, digest = ("node:22-", "NODE") if name == "page" else ("debian:", "DEBIAN")
        assert text.startswith(f"{image}bookworm-slim@${{{digest}_DIGEST}}\n"), name
        assert not re.search(r"^ADD |:latest|curl |wget ", text, re.M)
        if name in ("page", "build"):
            continue
        users = re.findall(r"^USER (\S+)$", text, re.M)
        assert users
        assert all(re.fullmatch(r"100\d\d:100\d\d", user) for user in users)
        assert "HEALTHCHECK" in text
        assert re.search(r"^ENTRYPOINT \[", text, re.M), "signals reach the process itself"
    assert "gcc" not in found["contourcast"]
    assert "COPY --from=page /source/contourcast/service/static" in found["build"]
    (number,) = re.findall(r"^NUMBER=(\d+)", (DOCKER / "install.sh").read_text(), re.M)
    assert f"USER {number}:{number}" in found["contourcast"]


def test_the_builder_is_sent_what_it_copies_and_no_more() -> None:
    rules = [
        line
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    sent = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for path in sent:
        assert (REPOSITORY / path).exists(), path
    text = (DOCKER / "Dockerfile").read_text()
    copied = re.findall(r"^COPY ((?:\S+ )+)\S+$", text, re.M) + re.findall(r"source=(\S+?),", text)
    for word in " ".join(copied).split():
        if word == "." or word.startswith(("--from", "/")):
            continue
        assert any(word == one or word.startswith(f"{one}/") for one in sent), word
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert {build["project"]["readme"], "hatch_build.py", "contourcast"} <= set(sent)


@pytest.mark.peer
def test_hadolint_finds_nothing() -> None:
    ran = subprocess.run(
        [lint("hadolint"), "--no-color", str(DOCKER / "Dockerfile")], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stdout + ran.stderr


# Compose


def test_every_container_of_compose_is_held_in() -> None:
    for name, service in composed().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == ("no" if name == "backup" else "unless-stopped"), name
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() == {"cpus", "memory", "pids"}, name
        for port in service.get("ports", []):
            assert re.match(r"127\.0\.0\.1:|\$\{\w+:-127\.0\.0\.1:", port), f"{name}: {port}"


def test_workers_of_compose_keep_their_slots_and_time_to_end() -> None:
    services = composed()
    workers = {n: s for n, s in services.items() if s.get("command", [""])[0] == "worker"}
    slots = [s["environment"]["CONTOURCAST_WORKER_SLOT"] for s in workers.values()]
    assert len(set(slots)) == len(workers) == 2
    for name in OURS:
        assert services[name]["stop_grace_period"] == "60s"
        assert services[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_compose_asks_for_nothing_that_the_secret_file_lacks(tmp_path: Path) -> None:
    """`setup.sh secrets` makes passwords once, for its owner alone, and never the same."""
    text = (DOCKER / "compose.yaml").read_text()
    required = {name for name, sign, _ in VARIABLE.findall(text) if sign == "?"}
    assert required == SECRETS.keys()
    for name in ("setup.sh", "secrets.env.example"):
        shutil.copy(DOCKER / name, tmp_path)

    def made() -> dict[str, str]:
        subprocess.run([tmp_path / "setup.sh", "secrets"], check=True)
        lines = (tmp_path / "secrets.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    first = made()
    assert required <= first.keys()
    assert (tmp_path / "secrets.env").stat().st_mode & 0o777 == 0o600
    passwords = {first["POSTGRES_PASSWORD"], first["CONTOURCAST_ORTHANC_PASSWORD"]}
    assert len(passwords) == 2
    assert all(re.fullmatch(r"[0-9a-f]{64}", one) for one in passwords)
    assert made() == first
    (tmp_path / "secrets.env").unlink()
    assert made()["POSTGRES_PASSWORD"] not in passwords
    assert "/secrets.env" in (DOCKER / ".gitignore").read_text().splitlines()


# Kubernetes


def manifests() -> list[dict[str, Any]]:
    """Every object of the base and of the overlay with GPUs."""
    paths = sorted({*BASE.glob("*.yaml"), *(DEPLOY / "kubernetes").glob("overlays/*/worker*.yaml")})
    return [
        document
        for path in paths
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def kustomizations() -> dict[Path, dict[str, Any]]:
    """Every kustomization, by its folder."""
    found = [
        *(DEPLOY / "kubernetes").rglob("kustomization.yaml"),
        DEPLOY / "backup" / "kustomization.yaml",
    ]
    return {path.parent: yaml.safe_load(path.read_text()) for path in found}


def pod_of(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The template of the pods that an object makes."""
    spec = document.get("spec", {})
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: dict[str, Any] | None = spec.get("template")
    return template


def containers(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The containers of those pods."""
    pod = pod_of(document)
    return list(pod["spec"]["containers"]) if pod else []


def test_kustomizations_name_what_is_there() -> None:
    for folder, made in kustomizations().items():
        for resource in made.get("resources", []):
            place = (folder / resource).resolve()
            assert place.is_file() or (place / "kustomization.yaml").is_file(), place
        for generator in made.get("configMapGenerator", []):
            for name in generator["files"]:
                assert (folder / name).is_file(), name
        for patch in made.get("patches", []):
            wanted = patch["target"]["kind"], patch["target"]["name"]
            (target,) = [d for d in manifests() if (d["kind"], d["metadata"]["name"]) == wanted]
            for change in yaml.safe_load(patch["patch"]):
                at: Any = target
                for step in change["path"].strip("/").split("/"):
                    at = at[int(step)] if isinstance(at, list) else at[step]
                assert at != change["value"]
    listed = {n for f, made in kustomizations().items() if f == BASE for n in made["resources"]}
    assert {p.name for p in BASE.glob("*.yaml")} - {"kustomization.yaml"} <= listed


def test_what_pods_refer_to_is_there() -> None:
    objects = manifests()
    generated = {
        g["name"] for made in kustomizations().values() for g in made.get("configMapGenerator", [])
    }
    images = {i["name"] for made in kustomizations().values() for i in made.get("images", [])}
    claims = {d["metadata"]["name"] for d in objects if d["kind"] == "PersistentVolumeClaim"}
    runbook = RUNBOOK.read_text()
    for document in objects:
        pod = pod_of(document)
        if pod is None:
            continue
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for volume in pod["spec"]["volumes"]:
            assert volume.get("configMap", {}).get("name", "") in {"", *generated}
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "") in {"", *claims}
        for container in containers(document):
            assert container["image"] in images
            assert {m["name"] for m in container["volumeMounts"]} == volumes
            for variable in container["env"]:
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                if secret is not None:
                    assert f"create secret generic {secret['name']} " in runbook
                    assert f"--from-literal={secret['key']}=" in runbook
                assert not re.search("PASSWORD|TOKEN|URL|KEY", variable["name"]) or secret


def test_services_budgets_and_policies_select_pods() -> None:
    objects = manifests()
    pods = [
        ({"app.kubernetes.io/part-of": "contourcast", **pod["metadata"]["labels"]}, pod["spec"])
        for document in objects
        if (pod := pod_of(document)) is not None
    ]

    def selected(labels: Mapping[str, str]) -> list[dict[str, Any]]:
        return [spec for have, spec in pods if labels.items() <= have.items()]

    for document in objects:
        spec, name = document.get("spec", {}), document["metadata"]["name"]
        if document["kind"] == "Service":
            (pod,) = selected(spec["selector"])
            named = {p["name"] for c in pod["containers"] for p in c.get("ports", [])}
            assert {p["targetPort"] for p in spec.get("ports", [])} <= named, name
        elif document["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
            assert len(selected(spec["selector"]["matchLabels"])) == 1, name
        elif document["kind"] == "NetworkPolicy":
            assert selected(spec["podSelector"].get("matchLabels", {})), name
    (nobody,) = [d for d in objects if d["metadata"]["name"] == "nobody"]
    assert nobody["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_pods_are_nobody_and_ask_for_what_they_need() -> None:
    for document in manifests():
        pod = pod_of(document)
        if pod is None:
            continue
        assert pod["spec"]["automountServiceAccountToken"] is False
        who = pod["spec"]["securityContext"]
        assert (who["runAsNonRoot"], who["runAsUser"]) == (True, 10001)
        assert who["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(document):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"].keys() == {"requests", "limits"}


def test_workers_of_kubernetes_have_stable_slots_and_the_node_is_one() -> None:
    objects = {(d["kind"], d["metadata"]["name"]): d for d in manifests()}
    workers = [d for (kind, _), d in objects.items() if kind == "StatefulSet"]
    assert len(workers) == 2
    for worker in workers:
        (container,) = containers(worker)
        variables = {v["name"]: v for v in container["env"]}
        slot = variables["CONTOURCAST_WORKER_SLOT"]["valueFrom"]
        assert slot == {"fieldRef": {"fieldPath": "metadata.name"}}
    node = objects["Deployment", "contourcast-dicom-node"]["spec"]
    assert (node["replicas"], node["strategy"]) == (1, {"type": "Recreate"})
    api = objects["Deployment", "contourcast-api"]["spec"]
    assert api["replicas"] == 2
    assert {"name": "data", "emptyDir": {"sizeLimit": "20Gi"}} in api["template"]["spec"]["volumes"]


@pytest.mark.peer
def test_the_objects_keep_the_schemas_of_kubernetes() -> None:
    validate = peer_module("kubernetes_validate")
    for document in manifests():
        validate.validate(document, "1.31", strict=True)
    service = next(d for d in manifests() if d["kind"] == "Service")
    with pytest.raises(validate.ValidationError):
        validate.validate(service | {"spec": {"ports": 1}}, "1.31", strict=True)


@pytest.mark.peer
def test_yamllint_finds_nothing() -> None:
    rules = {
        "extends": "default",
        "rules": {
            "braces": {"max-spaces-inside": 1},
            "document-start": "disable",
            "line-length": "disable",
        },
    }
    ran = subprocess.run(
        [
            lint("yamllint"),
            "--strict",
            "-d",
            json.dumps(rules),
            str(DOCKER / "compose.yaml"),
            str(DEPLOY),
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout


# systemd and shell


@pytest.mark.peer
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_systemd_takes_the_units_and_finds_them_closed(unit: Path, tmp_path: Path) -> None:
    analyze = lint("systemd-analyze")
    for path in UNITS:  # what they start is not installed here
        text = re.sub(
            r"^ExecStart=\S+", f"ExecStart={sys.executable}", path.read_text(), flags=re.M
        )
        (tmp_path / path.name).write_text(text)
    ours = tmp_path / unit.name
    verified = subprocess.run(
        [analyze, "verify", "--man=no", str(ours)], capture_output=True, text=True
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    if unit.suffix == ".service":
        judged = subprocess.run(
            [analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", str(ours)],
            capture_output=True,
            text=True,
        )
        assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize(
    "unit", [u for u in UNITS if u.suffix == ".service"], ids=lambda u: str(u.name)
)
def test_units_give_only_what_is_a_setting(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(re.findall(r"^Environment=(CONTOURCAST_\w+)=(.*)$", unit.read_text(), re.M))
    given.pop(FILE_VARIABLE, None)
    for name, value in given.items():
        monkeypatch.setenv(name, value.replace("%i", "cpu-1"))
    settings = ServiceSettings()
    for name in given:
        assert name.removeprefix("CONTOURCAST_").lower() in settings.model_fields_set


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.name))
def test_scripts_are_ones_of_bash_and_stop_at_the_first_error(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in script.read_text()
    ran = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.peer
def test_shellcheck_finds_nothing() -> None:
    ran = subprocess.run([lint("shellcheck"), *map(str, SCRIPTS)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_nothing_is_installed_without_the_review_page(tmp_path: Path) -> None:
    told = subprocess.run(
        [str(DOCKER / "install.sh"), "build"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (told.returncode, "make page" in told.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_what_was_chosen_is_built_again_at_an_upgrade(tmp_path: Path) -> None:
    for name in ("setup.sh", "secrets.env.example"):
        shutil.copy(DOCKER / name, tmp_path)
    (tmp_path / "secrets.env").write_text("POSTGRES_PASSWORD=kept\n")  # of an older version
    for chosen in ({}, {"VARIANT": "cpu"}, {"VARIANT": "cuda"}, {}):
        ran = subprocess.run(
            [str(tmp_path / "setup.sh"), "secrets"],
            env={"PATH": os.environ["PATH"], **chosen},
            capture_output=True,
        )
        assert ran.returncode == 0, ran.stderr
    text = (tmp_path / "secrets.env").read_text()
    assert text.startswith("POSTGRES_PASSWORD=kept\n")
    assert text.count("VARIANT=") == text.count("\nVARIANT=cuda\n") == 1
    assert "\nNODE_DIGEST=\n" in text


def test_every_build_of_compose_is_told_every_base() -> None:
    """The builder reads the name of each stage, also of those that it leaves out."""
    wanted = set(re.findall(r"^FROM \S+@\$\{(\w+)\}", (DOCKER / "Dockerfile").read_text(), re.M))
    built = [s["build"]["args"].keys() for s in composed().values() if "build" in s]
    assert len(built) >= 2
    assert all(wanted <= args for args in built)


def test_install_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    install = str(DOCKER / "install.sh")
    told = subprocess.run([install, "everything"], capture_output=True, text=True)
    assert told.returncode == 2
    assert "install.sh build" in told.stderr
