#!/usr/bin/env bash
# Runs a command, and runs it again when it ends before its work is done.
#
#   launch/restart.sh [--max_restarts=N] [--pause=SECONDS] COMMAND [ARGUMENTS]
#
# By the exit status of the command, as main.py uses them:
#   0, 2     done, or a mistake of the user's: ends with that status
#   75       preempted, or a peer was lost; its state is saved: restarts, however often
#   others   it crashed or was killed: restarts at most N times (10), then ends with that status
# SIGTERM and SIGINT reach the command as SIGTERM: it saves, and this ends with its status instead of restarting.

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
[[ $# -gt 0 ]] || fail "which command?"

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
  [[ -z $stopping ]] || stop # a signal came before the child was known
  while true; do # a signal interrupts `wait`, and the child takes its time
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
