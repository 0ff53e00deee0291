import subprocess
import sys

SCRIPT = """
import sys
import app.main
print(*{"torch", "workers.engine.engine", "workers.worker", "models.pipeline"} & sys.modules.keys())
"""


def test_the_front_end_runs_without_torch():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
