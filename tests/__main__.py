"""`python tests [--only-pytest] [pytest's arguments]`: prepare the environment, then check everything.

Runs ruff (check, format), the type checker and pytest in the private environment of demo/machine/environment.py; the
exit code is not zero when one of them failed. `--only-pytest` leaves out all but pytest. The slow tests of
the demo's evaluation (mark `measure`) run on CI, and when `-m measure` or their file asks for them.

    python tests --host 0.16.3          # tests/hosts/ on another ComfyUI: schemas, refusals, all workflows (minutes)
    python tests --host oldest -m "not more_workflows"
    python tests --front-end 1.58.1     # the front end's tests with another release of it
    python tests --soak 200             # mixed runs in one server, whose memory must come back (minutes)
    python tests --fuzz 5000            # cases of tests/fuzz/ from a new seed, which is printed (--seed 7: from that)
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACK = TESTS.parent
sys.path.insert(0, str(PACK / "demo"))

from machine.cache_folder import cache_folder  # noqa: E402
from machine.environment import Environment, prepare  # noqa: E402
from machine.host_layer import fetch_front_end, prepare_host  # noqa: E402
from machine.host_source import PreparationError  # noqa: E402

CHECKED = ("__init__.py", "nodes", "attention", "inversion", "host", "demo")


def _type_check_config(environment: Environment, folder: Path) -> Path:
    """A copy of pyproject's [tool.basedpyright] that knows where on this machine the host lies."""
    import tomllib

    with (PACK / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["tool"]["basedpyright"]
    settings["include"] = [str(PACK / name) for name in CHECKED if (PACK / name).exists()]
    settings["extraPaths"] = [str(environment.host), str(PACK / "demo")]
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps(settings), "utf-8")
    return config


def _left_out(arguments: Sequence[str], named: bool) -> list[str]:
    """Pytest's arguments that leave tests out, but not on CI and not where `-m` chooses.

    These are the front end's where there is no Chromium, and the slow ones of the demo's evaluation where nothing is
    `named`.
    """
    if "CI" in os.environ or "-m" in arguments:
        return []
    marks = []
    program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not Path(program).is_file():
        print(
            f"\n[attention-edit] NO CHROMIUM at {program}: the tests of the front end are LEFT OUT. Install Debian's "
            "package chromium, or name a Chromium or Chrome in the variable CHROMIUM.",
            flush=True,
        )
        marks.append("not browser")
    if not named:
        print(
            "\n[attention-edit] the slow tests of the demo's evaluation are left out; -m measure runs them", flush=True
        )
        marks.append("not measure")
    return ["-m", " and ".join(marks)] if marks else []


def _variables(environment: Environment) -> dict[str, str]:
    """What tests run with.

    One thread: the models are tiny, and threads that wait for each other cost more than they bring. Compiled modules
    are kept in the cache folder, also where the machine says to keep none: processes and servers start in half the
    time.
    """
    found = {"PYTHONPYCACHEPREFIX": str(cache_folder() / "bytecode"), "OMP_NUM_THREADS": "1", **environment.variables()}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def _step(name: str, command: Sequence[object], variables: Mapping[str, str], results: dict[str, int]) -> None:
    print(f"\n=== {name} ===", flush=True)
    results[name] = subprocess.run([str(part) for part in command], cwd=PACK, env=variables, check=False).returncode


def _report(results: Mapping[str, int]) -> None:
    words = [f"{name}: {'ok' if code == 0 else f'FAILED (exit code {code})'}" for name, code in results.items()]
    print("\n=== " + "; ".join(words) + " ===", flush=True)


def _taken(arguments: list[str], option: str) -> str:
    """Takes an option and its value out of the arguments; "" when it is not there."""
    if option not in arguments:
        return ""
    place = arguments.index(option)
    if place + 1 == len(arguments):
        raise PreparationError(f"Give {option} a value.")
    value = arguments[place + 1]
    del arguments[place : place + 2]
    return value


def _elsewhere(host: str, front_end: str, arguments: Sequence[str]) -> int:
    """The tests of tests/hosts/ on another host, or the front end's on another front end; returns the exit code."""
    environment = prepare_host(host or "newest")
    variables = _variables(environment)
    files = sorted((TESTS / "hosts").glob("check_*.py"))
    if front_end:
        variables["ATTENTION_EDIT_FRONT_END"] = str(fetch_front_end(front_end, environment.python))
        files = [TESTS / "workflows" / "test_workflows.py"]
    results: dict[str, int] = {}
    names = [environment.source, *([f"front end {front_end}"] if front_end else [])]
    pytest = [environment.python, "-m", "pytest", "-c", TESTS / "pytest.ini", *arguments]
    _step(", ".join(names), [*pytest, *files], variables, results)
    return 1 if any(results.values()) else 0


def _fuzzed(cases: str, seed: str, arguments: Sequence[str]) -> int:
    """Cases of tests/fuzz/ in two processes; returns the exit code. Its files read the two variables."""
    first = seed or str(random.SystemRandom().randrange(1_000_000))
    print(f"\n[attention-edit] the same again: python tests --fuzz {cases} --seed {first}", flush=True)
    variables = {"ATTENTION_EDIT_FUZZ": cases, "ATTENTION_EDIT_FUZZ_SEED": first}
    return _apart(f"fuzz, seed {first}", "test_fuzz_*.py", ["-n", "2", "--timeout", "0", *arguments], variables)


def _apart(name: str, files: str, options: Sequence[str], more: Mapping[str, str] | None = None) -> int:
    """Files of tests/fuzz/ alone, with more variables; returns the exit code."""
    environment = prepare(["test"])
    variables = {**_variables(environment), **(more or {})}
    results: dict[str, int] = {}
    pytest = [environment.python, "-m", "pytest", "-c", TESTS / "pytest.ini", *options]
    _step(name, [*pytest, *sorted((TESTS / "fuzz").glob(files))], variables, results)
    return 1 if any(results.values()) else 0


def main(arguments: list[str]) -> int:
    """Run all the checks; returns the exit code."""
    only_pytest = "--only-pytest" in arguments
    arguments = [argument for argument in arguments if argument != "--only-pytest"]
    try:
        host, front_end = _taken(arguments, "--host"), _taken(arguments, "--front-end")
        if cases := _taken(arguments, "--fuzz"):
            return _fuzzed(cases, _taken(arguments, "--seed"), arguments)
        if runs := _taken(arguments, "--soak"):
            return _apart("soak", "check_soak.py", ["-s", *arguments], {"ATTENTION_EDIT_SOAK": runs})
        if host or front_end:
            return _elsewhere(host, front_end, arguments)
        environment = prepare(["test"])
    except PreparationError as error:
        print(f"[attention-edit] {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    python = environment.python
    variables = _variables(environment)
    results: dict[str, int] = {}
    if not only_pytest:
        _step("ruff check", [python, "-m", "ruff", "check", PACK], variables, results)
        _step("ruff format", [python, "-m", "ruff", "format", "--check", PACK], variables, results)
        with tempfile.TemporaryDirectory() as folder:
            config = _type_check_config(environment, Path(folder))
            check = [python, "-m", "basedpyright", "--project", config, "--pythonpath", python]
            _step("basedpyright", check, variables, results)
        _report(results)
    named = any((PACK / argument.split("::")[0]).exists() for argument in arguments)
    arguments = [*arguments, *_left_out(arguments, named)]
    # Two processes, each with files of its own, and a server of its own where one of them asks for it.
    whole = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", TESTS]
    pytest = [python, "-m", "pytest", "-c", TESTS / "pytest.ini", *arguments, *([] if named else whole)]
    _step("pytest", pytest, variables, results)
    failed = [name for name, code in results.items() if code != 0]
    if failed and failed != ["pytest"]:
        print(f"[attention-edit] failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
