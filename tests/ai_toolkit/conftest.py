"""One process of AI Toolkit for all the tests of a worker. Skipped where AI_TOOLKIT_ROOT and
AI_TOOLKIT_PYTHON are not set."""

from pathlib import Path

import pytest

from .host import PYTHON, ROOT, Host

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER not in item.path.parents or item.path.stem == "test_tiny_models":
            continue
        item.add_marker(pytest.mark.ai_toolkit)
        if not (ROOT and PYTHON):
            item.add_marker(
                pytest.mark.skip(
                    reason="needs AI Toolkit: set AI_TOOLKIT_ROOT and AI_TOOLKIT_PYTHON"
                )
            )


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("ai_toolkit"))
    yield host
    host.close()


@pytest.fixture
def job(host, tmp_path):
    """`job(name, model, soar, **sections)` runs a job and returns what it left: events, log, final
    weights."""

    def run(*args, **kwargs):
        return host.run(tmp_path, *args, **kwargs)

    return run
