#!/usr/bin/env bash
# Runs a command, and restarts it until its work is done.
#
#   launch/restart.sh [--max_restarts=N] [--pause=SECONDS] COMMAND [ARGUMENTS]
#
# By the exit status of the command, as defined by main.py:
#   0, 2     finished, or a mistake of the user: exits with this status
#   75       preempted, or a peer was lost, with everything saved: restarts, any number of times
#   others   crashed or killed: restarts at most N times (10), then exits with this status
# SIGTERM and SIGINT are passed on as SIGTERM: the command saves, and this exits with its status without a restart.

set -euo pipefail

MAX_RESTARTS=10
PAUSE=10 # seconds before a restart

fail() {
  echo "error: $*; $0 --help explains" >&2
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
