"""No module of kdpipe loads, runs or fetches anything in a way that a stranger's file could use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOTS = ("kdpipe", "bench", "workflow")
#: calls that run what they read, whatever their arguments
NEVER = {
    "pickle.load": "pickle",
    "pickle.loads": "pickle",
    "pickle.Unpickler": "pickle",
    "cPickle.loads": "pickle",
    "dill.load": "pickle",
    "dill.loads": "pickle",
    "joblib.load": "pickle",
    "marshal.loads": "marshal",
    "shelve.open": "pickle",
    "pd.read_pickle": "pickle",
    "pandas.read_pickle": "pickle",
    "yaml.load": "yaml",
    "yaml.load_all": "yaml",
    "yaml.unsafe_load": "yaml",
    "yaml.full_load": "yaml",
    "tempfile.mktemp": "a name that another process can take first",
    "os.system": "shell",
    "os.popen": "shell",
    "eval": "runs text",
    "tarfile.TarFile.extractall": "paths of strangers",
    "shutil.unpack_archive": "paths of strangers",
}
#: calls that are safe in one way only: name -> (keyword, the value that it must have)
ONLY_WITH = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
_PROCESSES = {"run", "call", "check_call", "check_output", "Popen", "getoutput"}
_WEB = {"get", "post", "put", "head", "request", "send", "patch", "delete"}
#: where a rule of this file does not hold, and why
ALLOWED = {
    # the source of the catalogue's own Params classes, found by name in kdpipe's folder
    ("kdpipe/discover.py", "exec"),
    # a torch.export program; pickles in it are refused, see test_hostile_files
    ("kdpipe/nets/exported.py", "torch.export.load"),
    # a TorchScript program is read without Python's pickle
    ("kdpipe/nets/torchscript.py", "torch.jit.load"),
    ("kdpipe/ship/forms/torchscript.py", "torch.jit.load"),
    # text from strangers goes through kdpipe.yaml_files, which bounds it
    ("kdpipe/yaml_files.py", "yaml.safe_load"),
}


def findings(source: str, file: str) -> Iterator[str]:
    """Yield what must not stand in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if (file, name) in ALLOWED:
                continue
            keywords = {k.arg: k.value for k in node.keywords}
            for problem in _problems(name, node, keywords):
                yield f"{file}:{node.lineno}: {name}: {problem}"


def _problems(name: str, node: ast.Call, keywords: dict[str | None, ast.expr]) -> Iterator[str]:
    module, _, function = name.rpartition(".")
    if name in NEVER:
        yield NEVER[name]
    if name in {"exec", "torch.export.load", "torch.jit.load", "yaml.safe_load"}:
        yield "only where ALLOWED says why"
    if name in ONLY_WITH:
        keyword, value = ONLY_WITH[name]
        given = keywords.get(keyword)
        if not isinstance(given, ast.Constant) or given.value is not value:
            yield f"needs {keyword}={value}"
    if "shell" in keywords and getattr(keywords["shell"], "value", True):
        yield "shell=True"
    if module == "subprocess" and function in _PROCESSES:
        command = node.args[0] if node.args else keywords.get("args")
        if isinstance(command, ast.Constant | ast.JoinedStr):
            yield "a command as one string"
    if module in {"requests", "session"} and function in _WEB and "timeout" not in keywords:
        yield "no timeout"
    if function in {"extractall", "extract"}:
        yield "paths of strangers: kdpipe.data.acquisition.archive unpacks"


def sources(root: Path) -> list[Path]:
    return [file for part in ROOTS for file in sorted((root / part).rglob("*.py"))]


def test_the_tree_is_clean(root: Path) -> None:
    files = sources(root)
    assert len(files) > 200
    found = [
        problem
        for file in files
        for problem in findings(file.read_text(encoding="utf-8"), str(file.relative_to(root)))
    ]
    assert found == []


def test_what_is_allowed_is_still_there(root: Path) -> None:
    for file, name in ALLOWED:
        assert f"{name}(" in (root / file).read_text(encoding="utf-8"), (file, name)


def test_rules_quote_what_the_user_names(root: Path) -> None:
    """A config's free text reaches a shell in `params.run` and CONFIGURED alone, both quoted."""
    text = (root / "workflow/rules/configure.smk").read_text() + (root / "Snakefile").read_text()
    assert "{params.run:q}" in text and "{CONFIGURED:q}" in text
    assert "{params.run}" not in text and "{CONFIGURED}" not in text


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=flag)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "pickle.loads(text)",
        "yaml.load(text)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run('ls ' + name, shell=True)",
        "subprocess.run(f'ls {name}')",
        "os.system(name)",
        "eval(text)",
        "exec(text)",
        "requests.get(url)",
        "session.get(url, stream=True)",
        "tempfile.mktemp()",
        "archive.extractall(folder)",
        "torch.jit.load(file)",
    ],
)
def test_the_search_sees(line: str) -> None:
    assert list(findings(line, "kdpipe/new.py"))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(file, map_location='cpu', weights_only=True)",
        "np.load(file, allow_pickle=False)",
        "subprocess.run(['ls', name], check=False)",
        "session.get(url, timeout=3)",
        "network.eval()",
    ],
)
def test_the_search_passes(line: str) -> None:
    assert list(findings(line, "kdpipe/new.py")) == []
