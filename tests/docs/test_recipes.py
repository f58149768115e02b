"""The recipes of docs/workers.md for clusters: run, or read, as far as a machine without a cluster allows."""

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from lightning_hp.commands.arguments import parser
from lightning_hp.study.urls import PASSWORD, PASSWORD_FILE, STORAGE, is_proxy, is_server, proxy_address

PAGE = (Path(__file__).parents[2] / "docs/workers.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
READ = {STORAGE, PASSWORD, PASSWORD_FILE}


def block(kind, word):
    (text,) = [text for of, text in BLOCKS if of == kind and word in text]
    return text


def check(words):
    assert words[0] == "lightning-hp"
    return parser().parse_args(words[1:])


@pytest.fixture
def compose():
    return yaml.safe_load(block("yaml", "services:"))


def test_the_slurm_script_starts_the_study_with_the_threads_of_its_task(tmp_path):
    script = tmp_path / "study.sh"
    script.write_text(block("bash", "#SBATCH"))
    stand_in = tmp_path / "lightning-hp"
    stand_in.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $$ $*"\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "4"}
    with subprocess.Popen(["bash", str(script)], env=environment, stdout=subprocess.PIPE, text=True) as job:
        out = job.communicate()[0]
    threads, process, *words = out.split()
    assert job.returncode == 0
    assert threads == "4"
    assert int(process) == job.pid, "a signal of Slurm's reaches the study itself"
    check(["lightning-hp", *words])


def test_the_kubernetes_job_runs_workers_with_what_they_read():
    job = yaml.safe_load(block("yaml", "kind: Job"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = check(container["command"])
    assert (options.verb, options.worker.on_term) == ("worker", "hand-back")
    environment = {entry["name"]: entry for entry in container["env"]}
    assert set(environment) <= READ
    assert is_server(environment[STORAGE]["value"])
    assert job["spec"]["parallelism"] == job["spec"]["completions"]


def test_the_services_of_docker_compose_find_each_other(compose):
    services = compose["services"]
    proxy = shlex.split(services["proxy"]["command"])
    assert proxy[:2] == ["python", "-c"]
    calls = {node.func.id for node in ast.walk(ast.parse(proxy[2])) if isinstance(node, ast.Call)}
    assert {"open_storage", "run_grpc_proxy_server"} <= calls
    for statement in ast.parse(proxy[2]).body:
        if isinstance(statement, ast.ImportFrom):
            module = __import__(statement.module, fromlist=["names"])
            assert all(hasattr(module, name.name) for name in statement.names)
    url = re.search(r"postgresql://\w+@(\w+)/(\w+)", proxy[2])
    assert url is not None
    assert url[1] in services
    assert url[2] == services[url[1]]["environment"]["POSTGRES_DB"]
    assert set(services["proxy"]["environment"]) <= READ
    for name in ("tune", "worker"):
        storage = check(shlex.split(services[name]["command"]))[name].storage
        assert is_proxy(storage)
        assert proxy_address(storage) == ("proxy", 13000)
        assert "proxy" in services[name]["depends_on"]


def test_every_secret_of_docker_compose_is_where_its_reader_looks(compose):
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if name.endswith("_FILE"):
                secret = Path(value)
                assert secret.parent == Path("/run/secrets")
                assert secret.name in service["secrets"]
                assert secret.name in compose["secrets"]
