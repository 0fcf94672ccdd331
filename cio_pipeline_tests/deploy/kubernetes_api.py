"""What a run launcher asks of the Kubernetes API, on loopback: Jobs of one pod each, which is a process of this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flask
from werkzeug.serving import make_server

from cio_pipeline.sandbox.processes import bare_environment
from cio_pipeline_tests.deploy.files import DEPLOY

GRACE_SECONDS = 30
"""How long a pod that is deleted has to end by itself: Kubernetes' own default."""


@dataclass
class Cluster:
    """A namespace: what is in its ConfigMaps and Secrets, by how a pod refers to them, and the Jobs that are asked for."""

    folder: Path
    given: dict[str, dict[str, dict[str, str]]]
    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    def create(self, job: dict[str, Any]) -> None:
        """Takes the Job, and starts its pod."""
        name = job["metadata"]["name"]
        [container] = job["spec"]["template"]["spec"]["containers"]
        entrypoint = ["sh", str(DEPLOY / "entrypoint.sh"), sys.executable, "-m", *container["args"]]
        self.jobs[name] = job
        with (self.folder / f"pod-{name}.log").open("w") as log:
            self.pods[name] = subprocess.Popen(
                entrypoint, env=self.environment(container), stdout=log, stderr=log, text=True, start_new_session=True
            )

    def environment(self, container: dict[str, Any]) -> dict[str, str]:
        """The container's variables. Raises `KeyError` where it refers to what is not there: the pod would wait for it."""
        found = {**bare_environment(self.folder), "SECRETS": str(self.folder / "none")}
        for source in container["envFrom"]:
            for kind, of in source.items():
                found |= self.given[kind][of["name"]]
        for one in container["env"]:
            secret = one.get("valueFrom", {}).get("secretKeyRef")
            found[one["name"]] = self.given["secretRef"][secret["name"]][secret["key"]] if secret else one["value"]
        return found

    def status(self, name: str) -> dict[str, int]:
        """Of a Job: what became of its one pod."""
        code = self.pods[name].poll()
        return {"active": 1} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}

    def kill(self, name: str) -> None:
        """The pod is gone at once, as where its node is."""
        os.killpg(self.pods[name].pid, signal.SIGKILL)
        self.pods[name].wait()

    def end(self, name: str) -> None:
        """The pod is asked to end, and killed if it does not."""
        self.pods[name].terminate()
        try:
            self.pods[name].wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill(name)


@contextmanager
def serve(cluster: Cluster) -> Iterator[Cluster]:
    """Answers on loopback, at `cluster.url`, until the block ends."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", 0, _app(cluster), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        for name, pod in cluster.pods.items():
            if pod.poll() is None:
                cluster.kill(name)


def _app(cluster: Cluster) -> flask.Flask:
    app = flask.Flask(__name__)
    jobs, pods = "/apis/batch/v1/namespaces/default/jobs", "/api/v1/namespaces/default/pods"

    @app.post(jobs)
    def create() -> Any:
        cluster.create(flask.request.get_json())
        return flask.request.get_json(), 201

    @app.get(f"{jobs}/<name>/status")
    def read(name: str) -> Any:
        if name not in cluster.jobs:
            flask.abort(404)
        return {**cluster.jobs[name], "status": cluster.status(name)}

    @app.delete(f"{jobs}/<name>")
    def delete(name: str) -> Any:
        if not cluster.jobs.pop(name, None):
            flask.abort(404)
        cluster.deleted.append(name)
        return {"status": "Success"}

    @app.get(pods)
    def pods_listed() -> Any:
        """Those of a Job, or the one of a name: here the two are called the same."""
        selector = flask.request.args.get("labelSelector") or flask.request.args["fieldSelector"]
        name = selector.removeprefix("job-name=").removeprefix("metadata.name=")
        phase = "Running" if name in cluster.pods and cluster.pods[name].poll() is None else "Failed"
        pod = {"metadata": {"name": name}, "status": {"phase": phase}}
        return {"items": [pod] if name in cluster.pods else []}

    @app.delete(f"{pods}/<name>")
    def delete_pod(name: str) -> Any:
        cluster.end(name)
        return {"metadata": {"name": name}}

    @app.get("/api/v1/namespaces/default/events")
    def events() -> Any:
        return {"items": []}

    return app
