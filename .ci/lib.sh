# What .ci/run and .ci/nightly share; sourced by them from the project's root.

project=$PWD
work=$(mktemp -d "${TMPDIR:-/tmp}/ci-XXXXXX")
chmod 755 "$work" # some tests become another user, who must find the programs in it
copy=$work/checkout
started=$SECONDS
passed=0 failed=0 skipped=0
step=""
times=() notes=()
NEEDED_POSTGRES=15

trap finish EXIT

# ------------------------------------------------------------------ what is printed

section() { printf '\n=== %s  (at %d s)\n' "$1" $((SECONDS - started)); }

note() { printf '%s\n' "$1"; notes+=("$1"); }

run_step() { # run_step NAME: the function step_NAME, timed
  step=$1
  local began=$SECONDS
  section "$step"
  "step_${step//-/_}"
  times+=("$(printf '%-12s %4d s' "$step" $((SECONDS - began)))")
  step=""
}

finish() { # always the last: what took how long, what failed, and the closing line
  local status=$?
  stop_server
  cd /
  rm -rf "$work"
  section "steps"
  for line in "${times[@]}" "${notes[@]}"; do printf '%s\n' "$line"; done
  if [ "$status" != 0 ]; then
    printf 'FAILED%s (status %d): see above\n' "${step:+ in step $step}" "$status"
    [ "$failed" != 0 ] || failed=1
  fi
  printf '%d passed, %d failed, %d skipped in %d s\n' "$passed" "$failed" "$skipped" $((SECONDS - started))
  exit "$status"
}

# ------------------------------------------------------------------ tests, counted

tests() { # tests COMMAND...: runs it, and adds what its pytest counted to the totals
  local log=$work/log status=0
  printf '$ %s\n' "$*" | sed "s#$work/##g"
  "$@" 2>&1 | tee "$log" || status=$?
  add_to_totals "$log"
  return "$status"
}

add_to_totals() {
  local line
  line=$(grep -aE '^(=+ )?([0-9]+ [a-z]+(, )?)+ in [0-9.]+s' "$1" | tail -n 1) || return 0
  passed=$((passed + $(counted passed "$line")))
  failed=$((failed + $(counted failed "$line") + $(counted errors? "$line")))
  skipped=$((skipped + $(counted skipped "$line")))
}

counted() { printf '%s\n' "$2" | grep -oE "[0-9]+ $1\b" | grep -oE '[0-9]+' || echo 0; }

# ------------------------------------------------------------------ Pythons

pythons() { # every Python from 3.10 on that can make environments, once a version, oldest first
  local python
  for python in "$HOME"/.pyenv/versions/*/bin/python python3.{10..19} python3; do
    "$python" -c 'import sys, ensurepip, venv
if sys.version_info >= (3, 10): print("%d.%02d" % sys.version_info[:2], sys.executable)' 2>/dev/null || true
  done | sort -u -k1,1 | cut -d' ' -f2
}

environment() { # environment NAME PYTHON PIP-ARGUMENTS...: a virtual environment with these packages, once
  local name=$1 python=$2
  shift 2
  [ ! -x "$work/$name/bin/pip" ] || return 0
  "$python" -m venv "$work/$name"
  "$work/$name/bin/pip" install -qq --disable-pip-version-check "$@"
}

development() { environment dev python3 -e "$copy[embedded,dev]"; }

# ------------------------------------------------------------------ PostgreSQL of the system

system_postgres() { # the newest of the system's bin folders
  printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1
}

need_postgres() {
  [ -x "/usr/lib/postgresql/$NEEDED_POSTGRES/bin/postgres" ] && return
  # Debian would make and start a cluster at once; the tests start their own.
  mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/none.conf
  packages "postgresql-$NEEDED_POSTGRES"
}

need_pgbouncer() { # the program; the service that comes with it is not to run
  command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] && return
  packages pgbouncer
  ! command -v systemctl >/dev/null || systemctl disable --now pgbouncer >/dev/null 2>&1 || true
}

packages() {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

start_server() { # start_server BIN: a server as somebody else would run it; sets url, of an empty database
  local port
  server_bin=$1
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  mkdir "$work/server"
  [ "$(id -u)" != 0 ] || chown postgres "$work/server"
  as_postgres initdb -D "$work/server/data" -U postgres -A trust --no-sync >/dev/null
  as_postgres pg_ctl -D "$work/server/data" -w -s -l "$work/server/log" \
    -o "-p $port -k $work/server -c listen_addresses=127.0.0.1 -c fsync=off" start
  as_postgres createuser -h "$work/server" -p "$port" -U postgres app
  as_postgres createdb -h "$work/server" -p "$port" -U postgres -O app app_test
  url=postgresql://app@127.0.0.1:$port/app_test
}

stop_server() {
  [ -d "$work/server/data" ] || return 0
  as_postgres pg_ctl -D "$work/server/data" -w -s -m immediate stop || true
  rm -rf "$work/server"
}

as_postgres() {
  local program=$server_bin/$1
  shift
  if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$program" "$@"); else "$program" "$@"; fi
}

# ------------------------------------------------------------------ a container engine

container_engine() { # makes an engine with an image available, or says in `why` why not
  local up=${CONTAINER_ENGINE_UP:-$project/../shared/container-engine/up} told
  if [ -x "$up" ]; then
    told=$("$up" </dev/null) || { why="$up failed"; return 1; }
    eval "$told"
  elif docker info >/dev/null 2>&1; then
    export PGDBM_IMAGE=${PGDBM_IMAGE:-postgres:17}
    docker pull -q "$PGDBM_IMAGE" || { why="$PGDBM_IMAGE cannot be pulled"; return 1; }
  else
    why="no Docker daemon answers, and there is no script that brings one up (CONTAINER_ENGINE_UP)"
    return 1
  fi
}

# ------------------------------------------------------------------ the start

prepare() { # a machine and an environment variables' set that the result does not depend on, and a copy to work in
  # Much of what pip installs is never imported, and need not be compiled.
  export CI=true PIP_NO_INPUT=1 PIP_COMPILE=0 NO_COLOR=1
  exec </dev/null
  local name
  for name in "${!PG@}" "${!PYTEST@}" "${!PYTHON@}" "${!FORCE_COLOR@}"; do
    [ "$name" = PGDBM_IMAGE ] || unset "$name"
  done
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "python3 is older than 3.10"; exit 2; }
  python3 -c 'import ensurepip, venv' 2>/dev/null || packages python3-venv
  mkdir "$copy"
  copy_project | tar -C "$copy" -x
  cd "$copy"
}

copy_project() { # what git knows or would add, as it stands in the working tree
  if git -C "$project" rev-parse --git-dir >/dev/null 2>&1; then
    git -C "$project" ls-files -z --cached --others --exclude-standard |
      tar -C "$project" -c --null --ignore-failed-read --files-from=- 2>/dev/null
  else
    tar -C "$project" -c .
  fi
}
