"""Every Python block of the README and of the docs runs, in the order it is read."""
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = [(path.name, i, block) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
          for i, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))]


@pytest.mark.parametrize("name, i, block", BLOCKS, ids=[f"{name}-{i}" for name, i, _ in BLOCKS])
def test_the_blocks_run(name, i, block, capsys, tmp_path):
    script = tmp_path / f"{name}-{i}.py"
    script.write_text(block)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_readme_links_to_files_that_exist():
    text = (ROOT / "README.md").read_text()
    for target in (*re.findall(r"\]\(([^)h][^)]*)\)", text), *re.findall(r"`((?:tests|examples|benchmarks|sdediff)/[^`]+)`", text)):
        assert (ROOT / target).exists(), target
