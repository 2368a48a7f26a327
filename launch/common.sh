# shellcheck shell=bash
# Sourced by the launch scripts, which take [--help] [--dry_run] COMMAND [ARGUMENTS].

DRY_RUN=

# Prints the comment at the top of the script.
show_help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "launch/${0##*/}"
}

# Reports a usage error and exits.
fail() {
  echo "error: $*; see launch/${0##*/} --help" >&2
  exit 2
}

# Prints the arguments as one line for a POSIX shell.
quoted() {
  local word line='' special='[^A-Za-z0-9_@%+=:,./-]' quote="'" escaped="'\''"
  for word in "$@"; do
    if [[ -z $word || $word =~ $special ]]; then
      word="'${word//$quote/$escaped}'"
    fi
    line+=" $word"
  done
  echo "${line:1}"
}

# Runs a command, or prints it with --dry_run.
run() {
  if [[ -n $DRY_RUN ]]; then quoted "$@"; else "$@"; fi
}

# Fails unless the flags for main.py, $2 and on, include every name in $1.
need_flags() {
  local name
  for name in $1; do
    [[ " ${*:2}" == *" --$name"[=\ ]* ]] || fail "main.py needs --$name=..."
  done
}

# Prints the command that starts training on a host, in the background, unless it is running: directory $1, then flags.
start_command() {
  local command
  command=$(quoted launch/restart.sh "--max_restarts=$MAX_RESTARTS" .venv/bin/python main.py "${@:2}")
  echo "set -e; cd $(quoted "$1"); if pgrep -f -F train.pid launch/restart.sh > /dev/null 2>&1;" \
    "then echo 'already training: stop it first' >&2; exit 1; fi;" \
    "nohup $command >> train.log 2>&1 < /dev/null & echo \$! > train.pid"
}

# Prints the command that makes training save and stop.
stop_command() {
  echo "cd $(quoted "$1") && pkill -TERM -f -F train.pid launch/restart.sh || echo 'was not training' >&2"
}

# Prints the command that waits until training has stopped.
wait_command() {
  echo "cd $(quoted "$1") && while pgrep -f -F train.pid launch/restart.sh > /dev/null; do sleep 1; done"
}

log_command() {
  echo "tail -n 100 -F $(quoted "$1/train.log")"
}

while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry_run) DRY_RUN=yes ;;
    -h | --help) show_help && exit ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
