"""Print how long the tests took, from pytest's JUnit files: by module, and the ten slowest tests."""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

tests: Counter[tuple[str, str]] = Counter()
for file in Path(sys.argv[1]).glob("*.xml"):
    for case in ElementTree.parse(file).iter("testcase"):  # noqa: S314  written by this run
        tests[case.attrib["classname"].removeprefix("tests."), case.attrib["name"]] += float(case.attrib["time"])
modules: Counter[str] = Counter()
for (module, _), seconds in tests.items():
    modules["unit" if module.startswith("unit.") else module] += seconds
print("=== seconds by module")
for module, seconds in modules.most_common():
    print(f"{seconds:8.1f}  {module}")
print("=== the ten slowest tests, in seconds")
for (module, name), seconds in tests.most_common(10):
    print(f"{seconds:8.1f}  {module}::{name}")
