#!/usr/bin/env bash
# Runs a command, and restarts it until its work is done.
#
#   launch/restart.sh [--max_restarts=N] [--pause=SECONDS] COMMAND [ARGUMENTS]
#
# Acts on the exit status of the command, as main.py defines it:
#   0, 2     finished, or a user error: exits with that status
#   75       preempted, or lost a peer, after saving: restarts, any number of times
#   others   crashed or killed: restarts at most N times (10), then exits with that status
# SIGTERM and SIGINT are passed on as SIGTERM: the command saves, and restart.sh exits with its status.

set -euo pipefail

MAX_RESTARTS=10
PAUSE=10 # seconds before a restart

fail() {
  echo "error: $*; see $0 --help" >&2
  exit 2
}

while [[ ${1:-} == -* ]]; do
  case $1 in
    --max_restarts=*) MAX_RESTARTS=${1#*=} ;;
    --pause=*) PAUSE=${1#*=} ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
[[ $MAX_RESTARTS =~ ^[0-9]+$ ]] || fail "--max_restarts=$MAX_RESTARTS is not a number"
[[ $PAUSE =~ ^[0-9]+$ ]] || fail "--pause=$PAUSE is not a number of seconds"
[[ $# -gt 0 ]] || fail "no command"

child=
stopping=
signalled=
stop() {
  stopping=yes signalled=yes
  [[ -z $child ]] || kill -TERM "$child" 2> /dev/null || true
}
trap stop TERM INT

restarts=0
while true; do
  "$@" &
  child=$!
  [[ -z $stopping ]] || stop # a signal came before the child had started
  while true; do # signals interrupt `wait` before the child has ended
    signalled='' status=0
    wait "$child" || status=$?
    [[ -n $signalled ]] || break
  done
  child=
  if [[ -n $stopping || $status == 0 || $status == 2 ]]; then
    exit "$status"
  fi
  if [[ $status != 75 ]]; then
    if ((restarts == MAX_RESTARTS)); then
      echo "restart.sh: status $status after $restarts restarts: giving up" >&2
      exit "$status"
    fi
    restarts=$((restarts + 1))
  fi
  echo "restart.sh: status $status: restarting in $PAUSE s" >&2
  sleep "$PAUSE" &
  wait $! || true
  [[ -z $stopping ]] || exit "$status"
done
