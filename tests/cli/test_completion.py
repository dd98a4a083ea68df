"""Shell completion: `vlp --install-completion` makes bash complete commands and options."""

import os
import subprocess
import sys

PROGRAM = f"""#!{sys.executable}
import sys
sys.argv[0] = "vlp"
from vlp.cli.main import main
main()
"""
# What bash does when a user presses the tab key.
PRESS_TAB = """
. "$HOME/.bashrc"
COMP_WORDS=({words}); COMP_CWORD={last}
_vlp_completion vlp
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_bash_completes_after_the_installation(tmp_path):
    program = tmp_path / "bin" / "vlp"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(*command: str) -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert "bash" in run("bash", "-c", "vlp --install-completion && true")  # it asks which shell has called it
    assert run("bash", "-c", PRESS_TAB.format(words="vlp cap", last=1)) == ["caption", "capfilt"]
    assert run("bash", "-c", PRESS_TAB.format(words="vlp capfilt sel", last=2)) == ["select"]
    assert "--min-length" in run("bash", "-c", PRESS_TAB.format(words="vlp caption --min", last=2))
