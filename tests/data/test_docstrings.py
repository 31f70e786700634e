import ast
import importlib.metadata
import inspect
import json
import re
import sys
from collections import Counter
from dataclasses import is_dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy
import pytest

from slm.data import docstrings
from slm.data.docstrings import is_new, is_prose, module_parts, parse_in_worker

MODULE = '''"""What the module is for, said in one full sentence of words."""
import sys
if sys.version_info:
    def guarded(a, *, b=1):
        """This function is defined under a condition, and yet documented."""
class Thing:
    """A thing that has a method, which is documented in its turn."""
    async def act(self, how):
        """
        Acts on the thing:

            indented as the author wrote it, with trailing space.@
        """
    def quiet(self):
        pass
def terse():
    """Too short."""
TABLE = """not a docstring, and not a reference module, however long it is made """
'''.replace("@", "  ")


def test_docstrings_come_in_source_order_under_what_they_document():
    assert module_parts(MODULE, "package.module") == [
        ("", "What the module is for, said in one full sentence of words."),
        ("guarded(a, b)", "This function is defined under a condition, and yet documented."),
        ("class Thing", "A thing that has a method, which is documented in its turn."),
        ("Thing.act(how)", "Acts on the thing:\n\n    indented as the author wrote it, with trailing space."),
    ]


def test_long_literals_are_text_in_a_reference_module_only():
    prose = "Returns the sum of all elements in the input tensor, along the dimension that is given. " * 3
    source = f'"""The module itself has this docstring, and it comes once."""\nadd_docstr(f, """{prose}""", "short")\n'
    expected = [ast.get_docstring(ast.parse(source)), prose.strip()]
    assert [text for _, text in module_parts(source, "torch._torch_docs")] == expected
    assert len(module_parts(source, "torch.functional")) == 1


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("Returns a new tensor with the elements of the input, in the order of the indices.", True),
        (">>> np.add(1.0, 4.0)\n5.0\n\nAdds its arguments element by element, and gives an array.", True),
        ("0x00 0x1f 0x2b 12.5 13.7 22.1 | 8.1 | 9.3 | 10.4 ------ ====== ++++++", False),
        ('group = display-name ":" [group-list] ";" [CFWS]', False),
        ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk", False),
    ],
)
def test_prose_is_told_from_tables_and_grammars(text, prose):
    assert is_prose(text) is prose


@pytest.fixture(scope="module")
def documents():
    return [text for text, _ in docstrings.documents({"packages": ["rich", "filelock"]})]


def find(documents, module):
    (text,) = [text for text in documents if text.startswith(f"{module}\n")]
    return text


def test_documents_hold_what_python_itself_says_the_documentation_is(documents):
    for name in ("argparse", "textwrap", "rich.panel", "filelock._api"):
        text, members = find(documents, name), vars(importlib.import_module(name)).values()
        own = [value for value in members if inspect.isroutine(value) or inspect.isclass(value)]
        own = [value for value in own if value.__module__ == name and not is_dataclass(value)]
        described = [inspect.cleandoc(value.__doc__) for value in own if len(value.__doc__ or "") > 200]
        assert described
        for doc in described:
            assert "\n".join(line.rstrip() for line in doc.split("\n")) in text


def test_the_reference_of_the_language_is_there(documents):
    text = find(documents, "pydoc_data.topics")
    assert "".join(topics["lambda"].split()) in "".join(text.split())


def test_documents_are_the_same_each_time_and_in_one_order(documents):
    assert [text for text, _ in docstrings.documents({"packages": ["rich", "filelock"]})] == documents
    modules = [text.split("\n")[0] for text in documents]
    assert len(set(modules)) == len(modules)
    first_of_package = modules.index("rich")
    assert modules[:first_of_package] == sorted(modules[:first_of_package])
    packages = [module.split(".")[0] for module in modules[first_of_package:]]
    assert packages == sorted(packages, reverse=True)  # rich, then filelock: as they were asked for


def test_documents_name_no_path_of_this_machine_and_no_tests(documents):
    everything = "\n".join(documents)
    for path in (sys.prefix, sys.base_prefix, str(Path(docstrings.__file__).parents[2])):
        assert path not in everything
    assert not [text.split("\n")[0] for text in documents if re.search(r"(^|\.)tests?\.", text.split("\n")[0])]


def test_no_long_paragraph_comes_often(documents):
    seen = Counter(p for text in documents for p in {p.strip() for p in text.split("\n\n") if len(p) > 400})
    assert len(seen) > 200
    assert max(seen.values()) <= 2


def test_copies_and_near_copies_are_dropped_and_new_text_is_kept():
    seen = set()
    text = "Computes the mean over 3 axes of the input.\nRaises ValueError when there are none.\nSee also median, mode."
    assert is_new(text, seen)
    assert not is_new(text, seen)
    assert not is_new(text.replace("3", "4").upper(), seen)
    assert not is_new(text + "\nNew in 1.2", seen)
    assert is_new(text + "\nWhat follows here is twice as long as all that was said above about the mean.\n" * 3, seen)
    assert is_new("short", seen)
    assert not is_new("short", seen)


def test_the_key_names_versions_and_is_quick_to_make(config):
    key = docstrings.key(config("data", "pydocs"))
    assert key["packages"]["numpy"] == numpy.__version__ == importlib.metadata.version("numpy")
    assert key["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match=r"^data\.packages: no-such-package is not installed; install it or drop it"):
        docstrings.key({"packages": ["rich", "no-such-package"]})


def test_reading_documentation_imports_neither_the_packages_nor_torch(python):
    script = """
import sys
from slm.data import docstrings
documents = list(docstrings.documents({"packages": ["torchmetrics"]}))
print(len(documents) > 100, "torch" in sys.modules, "torchmetrics" in sys.modules)
"""
    answer, errors = python(script).communicate(timeout=100)
    assert answer == "True False False\n", errors


def test_a_worker_passes_over_what_does_not_parse(tmp_path):
    (tmp_path / "old.py").write_text("print 'Python 2'")
    (tmp_path / "latin.py").write_bytes(b'"""caf\xe9"""')
    (tmp_path / "good.py").write_text(MODULE)
    answer = parse_in_worker([(name, str(tmp_path / f"{name}.py")) for name in ("old", "latin", "good")])
    assert [module for module, _ in answer] == ["good"]
    assert json.loads(json.dumps(answer[0][1])) == [list(part) for part in module_parts(MODULE, "good")]
