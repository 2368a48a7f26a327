"""The launch scripts: --dry_run prints what runs, flags reach main.py unchanged, and training restarts and stops.

And the container: what it is given is enough.
"""

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
ENVIRONMENT = {"HOSTS": "me@a b", "ZONE": "z1", "ARCHIVE": "/tmp/it.tar.gz", "MAX_RESTARTS": "3"}

# call: environment variables; for each command that it runs, words that it must contain
CALLS = {
  "gpu.sh install": ({}, ["python3 -m venv .venv", ".venv/bin/pip install .[gpu]"]),
  "gpu.sh train FLAGS": ({}, ["-c", "launch/restart.sh --max_restarts=3"]),
  "gpu_hosts.sh install": (
    {},
    [
      "git archive --output=/tmp/it.tar.gz HEAD",
      "scp me@a:r3gan_jax.tar.gz",
      "ssh me@a",
      "scp b:r3gan_jax.tar.gz",
      "ssh b",
    ],
  ),
  "gpu_hosts.sh train FLAGS": ({"COORDINATOR_PORT": "9000"}, ["ssh me@a", "ssh b"]),
  "gpu_hosts.sh log": ({}, ["ssh me@a"]),
  "gpu_hosts.sh stop": ({}, ["ssh me@a", "ssh b", "ssh me@a", "ssh b"]),
  "slurm.sh submit FLAGS": ({"NODES": "4"}, ["sbatch --nodes=4 --gpus-per-node=8 --signal=TERM@120 --requeue"]),
  "slurm.sh job FLAGS": ({"CPUS_PER_GPU": "4"}, ["srun --cpus-per-task=4 --kill-on-bad-exit=0"]),
  "cloud_tpu.sh create": ({}, ["tpu-vm create r3gan --version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-4"]),
  "cloud_tpu.sh create --queued --spot": (
    {"TPU_NAME": "pod", "ACCELERATOR_TYPE": "v6e-256", "NFS": "10.0.0.2:/s"},
    [
      "queued-resources create pod --runtime-version=v2-alpha-tpuv6e --accelerator-type=v6e-256 --spot"
      " --metadata=enable-oslogin=TRUE"
    ],
  ),
  "cloud_tpu.sh create --spot": (
    {"ACCELERATOR_TYPE": "v4-8"},
    ["tpu-vm create --version=tpu-ubuntu2204-base --accelerator-type=v4-8 --spot"],
  ),
  "cloud_tpu.sh status": ({}, ["tpu-vm describe r3gan"]),
  "cloud_tpu.sh status --queued": ({}, ["queued-resources describe r3gan"]),
  "cloud_tpu.sh install": (
    {"NFS": "10.0.0.2:/s"},
    [
      "git archive --output=/tmp/it.tar.gz HEAD",
      "scp r3gan:r3gan_jax.tar.gz --worker=all",
      "ssh --worker=all",
      "ssh --worker=all",
    ],
  ),
  "cloud_tpu.sh train FLAGS": ({}, ["ssh --worker=all"]),
  "cloud_tpu.sh log": ({}, ["ssh --worker=0"]),
  "cloud_tpu.sh stop": ({}, ["ssh --worker=all", "ssh --worker=all"]),
  "cloud_tpu.sh delete": ({}, ["tpu-vm delete r3gan"]),
  "cloud_tpu.sh delete --queued": ({}, ["queued-resources delete r3gan --force"]),
}

RECORD = """#!/bin/bash
printf '%s\\0' "${0##*/bin/}" "$@" $'\\n' >> "$RECORD"
"""


@pytest.fixture
def repository(tmp_path):
  """A copy of launch/ in which every command that a script may call only records its arguments."""
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
  """Runs a launch script from another directory; returns (its result, the commands that it ran)."""
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


def run_call(root, name, **variables):
  """Returns (the commands that --dry_run prints, the commands that run) for one of `CALLS`."""
  script, *words = name.split()
  arguments = [argument for word in words for argument in (FLAGS if word == "FLAGS" else [word])]
  variables = ENVIRONMENT | CALLS[name][0] | variables
  dry, ran = call(root, [script, "--dry_run", *arguments], **variables)
  assert (dry.returncode, dry.stderr) == (0, "") and not ran
  real, ran = call(root, [script, *arguments], **variables)
  assert real.returncode == 0, real.stderr
  return [shlex.split(line) for line in dry.stdout.splitlines()], ran


@pytest.mark.parametrize("name", CALLS)
def test_prints_exactly_what_it_runs(repository, name):
  printed, ran = run_call(repository, name)
  for command, words in zip(printed, CALLS[name][1], strict=True):
    assert not set(words.split()) - set(command), command
    assert name.split("_")[0] != "cloud" or command[0] == "git" or {"gcloud", "--zone=z1"} <= set(command)
  # launch/restart.sh is ours, and runs for real
  printed = [command[3:] if command[0] == "exec" else command for command in printed]
  assert ran == [[command[0].removeprefix(".venv/bin/"), *command[1:]] for command in printed]


@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith("FLAGS")])
def test_the_flags_reach_main_unchanged(repository, name):
  """Quoting survives every shell in between."""
  _, ran = run_call(repository, name)
  starts = [command for command in ran if command[1] != "-c"]  # gpu.sh looks for a GPU first
  for process, command in enumerate(starts):
    words = command
    if command[0] != "srun" and "main.py" not in command:  # one word of it is a program for another shell
      (program,) = (word for word in command if "--workdir" in word)
      words = shlex.split(program.removeprefix("--command=").removeprefix("--wrap="), comments=False)
      words = words[: words.index(">>")] if ">>" in words else words
    assert ("--max_restarts=3" in words) == name.startswith(("gpu_hosts", "cloud"))
    joined = ["--coordinator=a:9000", "--num_processes=2", f"--process_id={process}"]
    assert words[-len(FLAGS) :] == FLAGS or words[-len(FLAGS) - 3 :] == FLAGS + joined
    assert (words[-len(FLAGS) :] == FLAGS) != name.startswith("gpu_hosts")


@pytest.mark.parametrize("script", ["gpu_hosts.sh", "cloud_tpu.sh"])
def test_the_log_is_the_one_that_training_writes(repository, script):
  _, (command,) = run_call(repository, f"{script} log")
  assert command[-1].split()[-1] == "r3gan_jax/train.log"


@pytest.mark.parametrize(
  "accelerator, version",
  [("v4-8", "tpu-ubuntu2204-base"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-4", "v2-alpha-tpuv6e")],
)
def test_runtime_versions(repository, accelerator, version):
  """Google's names for the accelerators."""
  _, (command,) = run_call(repository, "cloud_tpu.sh create", ACCELERATOR_TYPE=accelerator)
  assert {f"--accelerator-type={accelerator}", f"--version={version}"} <= set(command)


@pytest.mark.parametrize("name, extra", [("gpu_hosts.sh install", ".[gpu]"), ("cloud_tpu.sh install", ".[tpu,gcs]")])
def test_hosts_install_what_they_are_sent(repository, name, extra):
  _, ran = run_call(repository, name)
  programs = [" ".join(command) for command in ran if "ssh" in command]
  installs = [program for program in programs if f"--editable '{extra}'" in program]
  assert installs and all("tar -xzf r3gan_jax.tar.gz" in program for program in installs)
  assert any("mount 10.0.0.2:/s /mnt/r3gan" in program for program in programs) == name.startswith("cloud")


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
  """Returns a command that exits with each status in turn; the file `left` has the remaining ones."""
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
    ([75, 75, 75, 75, 0], 0, 0),  # any number of times
    ([1, 75, 134, 2, 0], 2, 1),
    ([1, 137, 3, 0], 3, 1),  # two restarts are allowed
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
trap 'sleep 1; echo saved; exit 75' TERM
echo "started $*"
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(tmp_path, number):
  executable(tmp_path / "train", SAVES)
  # In background jobs SIGINT is ignored, and a shell cannot trap a signal that was ignored when it started.
  restore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
  command = [sys.executable, "-c", restore, LAUNCH / "restart.sh", tmp_path / "train"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == "started \n"
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # a second signal changes nothing
    assert process.wait(timeout=60) == 75
    assert process.stdout.read() == "saved\n"


def test_a_signal_ends_the_pause_before_a_restart(tmp_path):
  executable(tmp_path / "fail", "#!/bin/bash\n[[ -e ran ]] && exec sleep 60\ntouch ran\nexit 1\n")
  command = [LAUNCH / "restart.sh", "--pause=600", "./fail"]
  with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
    assert "status 1: restarting in 600 s" in process.stderr.readline()
    time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 1  # of the only time that it ran


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
    assert again.returncode == 1 and "already training" in again.stderr
  finally:
    result, _ = call(repository, ["gpu_hosts.sh", "stop"], HOSTS="a b")
  assert (result.returncode, result.stderr) == (0, "")
  for process, log in enumerate(logs):
    flags = " ".join([*FLAGS, "--coordinator=a:8476", "--num_processes=2", f"--process_id={process}"])
    assert log.read_text() == f"started main.py {flags}\nsaved\n"
  result, _ = call(repository, ["gpu_hosts.sh", "stop"], HOSTS="a b")
  assert result.returncode == 0 and result.stderr.count("was not training") == 2


def test_no_script_was_forgotten():
  tested = {name.split()[0] for name in CALLS} | {"restart.sh", "common.sh"}
  assert {path.name for path in LAUNCH.glob("*.sh")} == tested
  assert all(os.access(LAUNCH / name, os.X_OK) for name in tested - {"common.sh"})


def test_the_container_has_what_a_run_imports(tmp_path):
  """The Dockerfile's COPY lines, carried out; nothing else is sent to the builder."""
  words = [line.split() for line in (LAUNCH / "Dockerfile").read_text().splitlines()]
  copied = [(source, line[-1]) for line in words if line[:1] == ["COPY"] for source in line[1:-1]]
  ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
  assert {f"!{source}" for source, _ in copied} == {line for line in ignored if line.startswith("!")}
  for source, target in copied:
    if (LAUNCH.parent / source).is_dir():
      shutil.copytree(LAUNCH.parent / source, tmp_path / target)
    else:
      shutil.copy(LAUNCH.parent / source, tmp_path / target)
  program = "import main, r3gan_jax, configs.cifar10 as it; it.get_config(); print(*r3gan_jax.__path__, it.__file__)"
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
  )
  assert done.stdout.split() == [f"{tmp_path}/r3gan_jax", f"{tmp_path}/configs/cifar10.py"], done.stderr
