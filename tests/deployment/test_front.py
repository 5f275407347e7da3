"""A link behind nginx: what a stranger with the address can do, and that registered silos notice nothing."""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import LIMIT_SECONDS, Deployment, classes_of
from flwr.supercore.protobuf.translation import PROTOBUF_ROUTES
from real_silos import write_silos

from fedsynth.cli.deployment.front import SILO_PATHS, front_command
from fedsynth.cli.deployment.link_folder import Connection, LinkFolder
from fedsynth.cli.deployment.processes import environment_of

NGINX = shutil.which("nginx") or next((path for path in ("/usr/sbin/nginx",) if os.access(path, os.X_OK)), None)
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx")

SILOS = {"north": (0, 1), "south": (1, 2)}
