"""The launch scripts: what they would run, exactly; that this is what they run; and how a host restarts and stops."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
FLAGS = ["--config=configs/x.py:smoke", "--workdir=/n/it's mine", "--config.gan.augment_p=(0.0, 0.3)"]
QUOTED_FLAGS = r"--config=configs/x.py:smoke '--workdir=/n/it'\''s mine' '--config.gan.augment_p=(0.0, 0.3)'"
ENVIRONMENT = {"HOSTS": "a me@b", "ZONE": "z1", "ARCHIVE": "/tmp/it.tar.gz"}
TPU = ["gcloud", "compute", "tpus"]
ON_TPU = [*TPU, "tpu-vm", "ssh", "r3gan", "--zone=z1"]

START = (
  "set -e; cd r3gan_jax; if pgrep -f -F train.pid launch/restart.sh > /dev/null 2>&1; "
  "then echo 'it is training: stop it first' >&2; exit 1; fi; "
  "nohup launch/restart.sh --max_restarts=10 .venv/bin/python main.py {} >> train.log 2>&1 < /dev/null & "
  "echo $! > train.pid"
)
STOP = "cd r3gan_jax && pkill -TERM -f -F train.pid launch/restart.sh || echo 'it was not training' >&2"
WAIT = "cd r3gan_jax && while pgrep -f -F train.pid launch/restart.sh > /dev/null; do sleep 1; done"
LOG = "tail -n 100 -F r3gan_jax/train.log"
ARCHIVE = ["git", "archive", "--format=tar.gz", "--output=/tmp/it.tar.gz", "HEAD"]
INSTALL_TPU = (
  "mkdir -p r3gan_jax && tar -xzf r3gan_jax.tar.gz -C r3gan_jax && cd r3gan_jax && export PATH=$HOME/.local/bin:$PATH "
  "&& { command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh; } && uv venv --allow-existing --python=3.12 "
  ".venv && uv pip install --python=.venv/bin/python --editable '.[tpu,gcs]'"
)
MOUNT = (
  "sudo apt-get -o DPkg::Lock::Timeout=300 install --yes nfs-common && sudo mkdir -p /mnt/r3gan && "
  "{ mountpoint -q /mnt/r3gan || sudo mount 10.0.0.2:/s /mnt/r3gan; } && sudo chmod 1777 /mnt/r3gan"
)
INSTALL_GPU = (
  "mkdir -p r3gan_jax && tar -xzf r3gan_jax.tar.gz -C r3gan_jax && cd r3gan_jax &&",
  "python3 -m venv .venv && .venv/bin/pip install --editable '.[gpu]'",
)


def distributed(process: int) -> str:
  return f"{QUOTED_FLAGS} --coordinator=a:8476 --num_processes=2 --process_id={process}"


# name: the commands, the variables that it sets, the call
CASES = {
  "gpu install": (
    [["python3", "-m", "venv", ".venv"], [".venv/bin/pip", "install", "--editable", ".[gpu]"]],
    {},
    ["gpu.sh", "install"],
  ),
  "gpu train": (
    [["exec", "launch/restart.sh", "--max_restarts=3", ".venv/bin/python", "main.py", *FLAGS]],
    {"MAX_RESTARTS": "3"},
    ["gpu.sh", "train", *FLAGS],
  ),
  "gpu_hosts install": (
    [
      ARCHIVE,
      ["scp", "/tmp/it.tar.gz", "a:r3gan_jax.tar.gz"],
      ["ssh", "a", *INSTALL_GPU],
      ["scp", "/tmp/it.tar.gz", "me@b:r3gan_jax.tar.gz"],
      ["ssh", "me@b", *INSTALL_GPU],
    ],
    {},
    ["gpu_hosts.sh", "install"],
  ),
  "gpu_hosts train": (
    [["ssh", "a", START.format(distributed(0))], ["ssh", "me@b", START.format(distributed(1))]],
    {},
    ["gpu_hosts.sh", "train", *FLAGS],
  ),
  "gpu_hosts log": ([["ssh", "a", LOG]], {}, ["gpu_hosts.sh", "log"]),
  "gpu_hosts stop": (
    [["ssh", "a", STOP], ["ssh", "me@b", STOP], ["ssh", "a", WAIT], ["ssh", "me@b", WAIT]],
    {},
    ["gpu_hosts.sh", "stop"],
  ),
  "slurm submit": (
    [
      [
        *["sbatch", "--job-name=r3gan", "--output=slurm-%x-%j.log", "--open-mode=append", "--chdir=REPOSITORY"],
        *["--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=8", "--time=24:00:00"],
        *["--signal=TERM@120", "--requeue", f"--wrap=launch/slurm.sh job {QUOTED_FLAGS}"],
      ]
    ],
    {"NODES": "4"},
    ["slurm.sh", "submit", *FLAGS],
  ),
  "slurm job": (
    [
      [
        *["srun", "--cpus-per-task=4", "--kill-on-bad-exit=0", "--wait=300"],
        *[".venv/bin/python", "main.py", *FLAGS],
      ]
    ],
    {"CPUS_PER_GPU": "4"},
    ["slurm.sh", "job", *FLAGS],
  ),
  "cloud_tpu create": (
    [
      [
        *[*TPU, "tpu-vm", "create", "r3gan", "--version=v2-alpha-tpuv5-lite", "--zone=z1"],
        "--accelerator-type=v5litepod-4",
      ]
    ],
    {},
    ["cloud_tpu.sh", "create"],
  ),
  "cloud_tpu create --queued --spot": (
    [
      [
        *[*TPU, "queued-resources", "create", "pod", "--node-id=pod", "--runtime-version=v2-alpha-tpuv6e", "--zone=z1"],
        *["--accelerator-type=v6e-256", "--spot", "--metadata=enable-oslogin=TRUE"],
      ]
    ],
    {"TPU_NAME": "pod", "ACCELERATOR_TYPE": "v6e-256", "NFS": "10.0.0.2:/s"},
    ["cloud_tpu.sh", "create", "--queued", "--spot"],
  ),
  "cloud_tpu create v4": (
    [
      [
        *[*TPU, "tpu-vm", "create", "r3gan", "--version=tpu-ubuntu2204-base", "--zone=z1"],
        *["--accelerator-type=v4-8", "--spot"],
      ]
    ],
    {"ACCELERATOR_TYPE": "v4-8"},
    ["cloud_tpu.sh", "create", "--spot"],
  ),
  "cloud_tpu create v5p": (
    [
      [*TPU, "tpu-vm", "create", "r3gan", "--version=v2-alpha-tpuv5", "--zone=z1", "--accelerator-type=v5p-8"],
    ],
    {"ACCELERATOR_TYPE": "v5p-8"},
    ["cloud_tpu.sh", "create"],
  ),
  "cloud_tpu status": (
    [[*TPU, "tpu-vm", "describe", "r3gan", "--zone=z1", "--format=value(state,health)"]],
    {},
    ["cloud_tpu.sh", "status"],
  ),
  "cloud_tpu status --queued": (
    [[*TPU, "queued-resources", "describe", "r3gan", "--zone=z1", "--format=value(state.state)"]],
    {},
    ["cloud_tpu.sh", "status", "--queued"],
  ),
  "cloud_tpu install": (
    [
      ARCHIVE,
      [*TPU, "tpu-vm", "scp", "/tmp/it.tar.gz", "r3gan:r3gan_jax.tar.gz", "--zone=z1", "--worker=all"],
      [*ON_TPU, "--worker=all", f"--command={INSTALL_TPU}"],
      [*ON_TPU, "--worker=all", f"--command={MOUNT}"],
    ],
    {"NFS": "10.0.0.2:/s"},
    ["cloud_tpu.sh", "install"],
  ),
  "cloud_tpu train": (
    [[*ON_TPU, "--worker=all", f"--command={START.format(QUOTED_FLAGS)}"]],
    {},
    ["cloud_tpu.sh", "train", *FLAGS],
  ),
  "cloud_tpu log": ([[*ON_TPU, "--worker=0", f"--command={LOG}"]], {}, ["cloud_tpu.sh", "log"]),
  "cloud_tpu stop": (
    [[*ON_TPU, "--worker=all", f"--command={STOP}"], [*ON_TPU, "--worker=all", f"--command={WAIT}"]],
    {},
    ["cloud_tpu.sh", "stop"],
  ),
  "cloud_tpu delete": ([[*TPU, "tpu-vm", "delete", "r3gan", "--zone=z1"]], {}, ["cloud_tpu.sh", "delete"]),
  "cloud_tpu delete --queued": (
    [[*TPU, "queued-resources", "delete", "r3gan", "--zone=z1", "--force"]],
    {},
    ["cloud_tpu.sh", "delete", "--queued"],
  ),
}

RECORD = """#!/bin/bash
printf '%s\\0' "${0##*/bin/}" "$@" $'\\n' >> "$RECORD"
"""


@pytest.fixture
def repository(tmp_path):
  """A copy of launch/, where every command that a script might call records itself instead."""
  root = tmp_path / "repository"
  shutil.copytree(LAUNCH, root / "launch")
  for name in ("git", "gcloud", "ssh", "scp", "sbatch", "srun", "scontrol", "python3", "pip", "python"):
    in_venv = name in ("pip", "python")
    executable(root / (".venv/bin" if in_venv else "bin") / name, RECORD)
  return root


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def call(root, arguments, **variables):
  """Runs a launch script from another directory; (its result, the commands that it ran)."""
  environment = {"PATH": f"{root}/bin:/usr/bin:/bin", "HOME": str(root), "RECORD": str(root / "record")}
  result = subprocess.run(
    [root / "launch" / arguments[0], *arguments[1:]],
    env=environment | variables,
    cwd=root.parent,
    capture_output=True,
    text=True,
    timeout=60,
  )
  record = root / "record"
  commands = record.read_text().split("\0\n\0")[:-1] if record.exists() else []
  return result, [command.split("\0") for command in commands]


@pytest.mark.parametrize("name", CASES)
def test_prints_exactly_what_it_runs(repository, name):
  expected, variables, (script, *arguments) = CASES[name]
  expected = [[word.replace("REPOSITORY", str(repository)) for word in command] for command in expected]
  variables = ENVIRONMENT | variables

  dry, ran = call(repository, [script, "--dry_run", *arguments], **variables)
  assert (dry.returncode, dry.stderr) == (0, "") and not ran
  assert [shlex.split(line) for line in dry.stdout.splitlines()] == expected

  real, ran = call(repository, [script, *arguments], **variables)
  assert real.returncode == 0, real.stderr
  if expected[0][0] == "exec":  # launch/restart.sh is ours, and runs for real
    expected = [expected[0][3:]]
  assert ran == [[command[0].removeprefix(".venv/bin/"), *command[1:]] for command in expected]


@pytest.mark.parametrize("script", ["gpu.sh", "gpu_hosts.sh", "slurm.sh", "cloud_tpu.sh", "restart.sh"])
def test_help_and_bad_arguments(repository, script):
  result, ran = call(repository, [script, "--help"])
  assert result.returncode == 0 and f"launch/{script}" in result.stdout and "set -euo" not in result.stdout
  for arguments in ([], ["conquer"], ["--dry"], ["--dry", "train", *FLAGS]):
    if script == "restart.sh" and arguments == ["conquer"]:
      continue  # a command that does not exist is a crash
    result, ran = call(repository, [script, *arguments], **ENVIRONMENT)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert f"launch/{script} --help" in result.stderr
  assert not ran


@pytest.mark.parametrize(
  "arguments, variables, message",
  [
    (["gpu.sh", "train"], {}, "main.py needs --config="),
    (["gpu_hosts.sh", "train", "--config=x.py"], {}, "main.py needs --workdir="),
    (["gpu_hosts.sh", "log"], {"HOSTS": ""}, "HOSTS is not set"),
    (["slurm.sh", "submit", "--workdir=/n"], {}, "main.py needs --config="),
    (["cloud_tpu.sh", "log"], {"ZONE": ""}, "ZONE is not set"),
    (["cloud_tpu.sh", "train", "--config=x.py"], {}, "main.py needs --workdir="),
    (["cloud_tpu.sh", "delete", "--spot"], {}, "delete takes no --spot"),
    (["cloud_tpu.sh", "create", "--quick"], {}, "create takes no --quick"),
    (["cloud_tpu.sh", "create"], {"ACCELERATOR_TYPE": "v99-8"}, "ACCELERATOR_TYPE=v99-8 is unknown"),
    (["restart.sh", "--max_restarts=many", "true"], {}, "--max_restarts=many is not a number"),
  ],
)
def test_usage_errors(repository, arguments, variables, message):
  result, ran = call(repository, arguments, **ENVIRONMENT | variables)
  assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1 and not ran


@pytest.mark.parametrize(
  "status, restarts, state, requeued",
  [
    (0, 0, "RUNNING", False),
    (2, 0, "RUNNING", False),
    (75, 0, "RUNNING", True),
    (137, 1, "RUNNING", True),
    (137, 2, "RUNNING", False),
    (75, 0, "CANCELLED", False),
  ],
)
def test_a_slurm_job_queues_again_unless_it_is_final(repository, status, restarts, state, requeued):
  executable(repository / "bin/srun", f"#!/bin/bash\nexit {status}\n")
  executable(repository / "bin/squeue", f"#!/bin/bash\n[[ $* == *--jobs=7* ]] && echo {state}\n")
  variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "MAX_RESTARTS": "2"}
  _, ran = call(repository, ["slurm.sh", "job", *FLAGS], **variables)
  assert ran == ([["scontrol", "requeue", "7"]] if requeued else [])


def statuses(tmp_path, *values):
  """A command that ends with each status in turn; and the file that has what is left of them."""
  (tmp_path / "left").write_text("".join(f"{value}\n" for value in values))
  executable(
    tmp_path / "command", '#!/bin/bash\nstatus=$(head -n 1 left)\nsed -i 1d left\nprintf "%s\\n" "$@"\nexit "$status"\n'
  )
  return ["./command", "two words", "*"]


@pytest.mark.parametrize(
  "values, status, left",
  [
    ([0, 1], 0, 1),
    ([2, 0], 2, 1),
    ([75, 75, 75, 75, 0], 0, 0),  # as often as it takes
    ([1, 75, 134, 2, 0], 2, 1),
    ([1, 137, 3, 0], 3, 1),  # two restarts are used up
  ],
)
def test_restarts(tmp_path, values, status, left):
  command = statuses(tmp_path, *values)
  result = subprocess.run(
    [LAUNCH / "restart.sh", "--max_restarts=2", "--pause=0", *command],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert result.returncode == status
  assert len((tmp_path / "left").read_text().split()) == left
  assert result.stdout == "two words\n*\n" * (len(values) - left)


SAVES = """#!/bin/bash
trap 'sleep 0.3; echo saved; exit 75' TERM
echo "started $*"
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(tmp_path, number):
  executable(tmp_path / "train", SAVES)
  # Where the tests run in the background SIGINT is ignored, and no shell can trap what it was started to ignore.
  heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
  command = [sys.executable, "-c", heed, LAUNCH / "restart.sh", tmp_path / "train"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == "started \n"
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # impatience does not hurt
    assert process.wait(timeout=60) == 75
    assert process.stdout.read() == "saved\n"


def test_a_signal_ends_the_pause_before_a_restart(tmp_path):
  with subprocess.Popen([LAUNCH / "restart.sh", "--pause=600", "false"], stderr=subprocess.PIPE, text=True) as process:
    assert "status 1: restarting in 600 s" in process.stderr.readline()
    time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 1


def test_hosts_train_in_the_background_once_until_stopped(repository):
  executable(repository / "bin/ssh", '#!/bin/bash\ncd "$HOME/$1" && exec bash -c "${*:2}"\n')
  for host in ("a", "b"):
    shutil.copytree(LAUNCH, repository / host / "r3gan_jax/launch")
    executable(repository / host / "r3gan_jax/.venv/bin/python", SAVES)
  logs = [repository / host / "r3gan_jax/train.log" for host in ("a", "b")]

  result, _ = call(repository, ["gpu_hosts.sh", "train", *FLAGS], HOSTS="a b")
  try:
    assert result.returncode == 0, result.stderr
    deadline = time.monotonic() + 30
    while not all(log.exists() and log.read_text() for log in logs):
      assert time.monotonic() < deadline
      time.sleep(0.05)
    again, _ = call(repository, ["gpu_hosts.sh", "train", *FLAGS], HOSTS="a b")
    assert again.returncode == 1 and "it is training" in again.stderr
  finally:
    result, _ = call(repository, ["gpu_hosts.sh", "stop"], HOSTS="a b")
  assert (result.returncode, result.stderr) == (0, "")
  for process, log in enumerate(logs):
    flags = " ".join([*FLAGS, "--coordinator=a:8476", "--num_processes=2", f"--process_id={process}"])
    assert log.read_text() == f"started main.py {flags}\nsaved\n"
  result, _ = call(repository, ["gpu_hosts.sh", "stop"], HOSTS="a b")
  assert result.returncode == 0 and result.stderr.count("it was not training") == 2


def test_no_script_was_forgotten():
  tested = {arguments[0] for _, _, arguments in CASES.values()} | {"restart.sh", "common.sh"}
  assert {path.name for path in LAUNCH.iterdir()} == tested
  assert all(os.access(LAUNCH / name, os.X_OK) for name in tested - {"common.sh"})
