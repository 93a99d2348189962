#!/usr/bin/env bash
# A real SLURM on one machine, for tests: virtual nodes with fake GPUs, accounting, preemption.
#
#   lab.sh install | start | stop | purge | status | kill-node N | start-node N
#
# Debian or Ubuntu, as root; no systemd, container or cgroup is needed. `start` installs what is
# missing and may be repeated. `purge` stops all and removes the packages that `start` installed:
# with client tools but no controller each start of Snakemake waits ten seconds for an answer.
# Only processes that this script started are ever signalled.
set -euo pipefail

LAB=${SLURM_LAB:-/var/lib/kdpipe-slurm-lab}
NODES=${SLURM_LAB_NODES:-3}
CPUS=${SLURM_LAB_CPUS:-8}         # claimed by each node; may exceed what there is
MEMORY=${SLURM_LAB_MEMORY:-16000} # MiB, likewise
GPUS=${SLURM_LAB_GPUS:-2}
HOST=$(hostname -s)
PACKAGES=(slurmctld slurmd slurm-client slurmdbd mariadb-server munge)

# --- processes ------------------------------------------------------------------------------

# Whether process $1 runs. A zombie does not, though it can still be signalled.
running() {
  [[ -e /proc/$1 ]] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2> /dev/null
}

alive() { [[ -s $LAB/pid/$1 ]] && running "$(< "$LAB/pid/$1")"; }

# daemon NAME COMMAND...: run it detached, remember its id
daemon() {
  local name=$1
  shift
  alive "$name" && return 0
  setsid "$@" >> "$LAB/log/$name.out" 2>&1 < /dev/null &
  echo $! > "$LAB/pid/$name"
}

# end NAME [SIGNAL]
end() {
  local pid
  if alive "$1"; then
    pid=$(< "$LAB/pid/$1")
    kill "-${2:-TERM}" "$pid"
    for _ in {1..100}; do
      running "$pid" || break
      sleep 0.1
    done
    if running "$pid"; then kill -KILL "$pid"; fi
  fi
  rm -f "$LAB/pid/$1"
}

# until_works SECONDS COMMAND...
until_works() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" > /dev/null 2>&1; do
    ((SECONDS < deadline)) || {
      echo "lab: gave up waiting for: $*" >&2
      exit 1
    }
    sleep 0.2
  done
}

# --- packages -------------------------------------------------------------------------------

install() {
  mkdir -p "$LAB/log"
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null) == installed ]] \
      || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  printf '%s\n' "${missing[@]}" >> "$LAB/installed"
  export DEBIAN_FRONTEND=noninteractive
  # the packages' own services must not start
  local policy=/usr/sbin/policy-rc.d ours=0
  if [[ ! -e $policy ]]; then
    ours=1
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
  fi
  local result=0
  { apt-get -qq update && apt-get -qq install --yes --no-install-recommends "${missing[@]}"; } \
    > "$LAB/log/apt.out" 2>&1 < /dev/null || result=$?
  if ((ours)); then rm -f "$policy"; fi
  if ((result)); then
    tail -n 20 "$LAB/log/apt.out" >&2
    exit 1
  fi
}

# --- configuration --------------------------------------------------------------------------

# It lies in /etc/slurm, as the plugin for job steps hands no SLURM_CONF down.
write_configuration() {
  mkdir -p /etc/slurm
  if [[ -s /etc/slurm/slurm.conf ]] && ! grep -q '^ClusterName=kdlab$' /etc/slurm/slurm.conf; then
    echo "lab: /etc/slurm/slurm.conf is of another cluster and stays as it is" >&2
    exit 1
  fi
  # OverMemoryKill instead of cgroups. A requeued job waits until its credential has expired,
  # two minutes by default.
  cat > /etc/slurm/slurm.conf << END
ClusterName=kdlab
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=20
SlurmctldPort=16917
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdPidFile=$LAB/run/slurmd-%n.pid
SlurmdLogFile=$LAB/log/slurmd-%n.log
SlurmdSpoolDir=$LAB/spool/%n
SlurmdParameters=config_overrides
SlurmdTimeout=10
StateSaveLocation=$LAB/controller
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=300
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16919
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
END
  : > /etc/slurm/gres.conf
  local node gpu
  for ((gpu = 0; gpu < GPUS; gpu++)); do # a GPU must be a character device
    [[ -c $LAB/dev/gpu$gpu ]] || mknod "$LAB/dev/gpu$gpu" c 1 3
  done
  for ((node = 1; node <= NODES; node++)); do
    echo "NodeName=n$node NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((17100 + node))" \
      "CPUs=$CPUS RealMemory=$MEMORY Gres=gpu:$GPUS State=UNKNOWN" >> /etc/slurm/slurm.conf
    echo "NodeName=n$node Name=gpu File=$LAB/dev/gpu[0-$((GPUS - 1))]" >> /etc/slurm/gres.conf
  done
  cat >> /etc/slurm/slurm.conf << END
PartitionName=cpu    Nodes=ALL MaxTime=1-0 DefaultTime=10 PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=gpu    Nodes=ALL MaxTime=1-0 DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=1-0 DefaultTime=10 PriorityTier=20 PreemptMode=OFF
END
  echo 'CgroupAutomount=no' > /etc/slurm/cgroup.conf
  cat > /etc/slurm/slurmdbd.conf << END
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16919
SlurmUser=root
LogFile=$LAB/log/slurmdbd.log
PidFile=$LAB/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13406
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_accounting
END
  chmod 600 /etc/slurm/slurmdbd.conf # else slurmdbd refuses it
}

# --- the parts ------------------------------------------------------------------------------

start_munge() {
  munge --no-input > /dev/null 2>&1 && return 0
  command install -d -o munge -g munge -m 755 /run/munge
  command install -d -o munge -g munge -m 700 /var/log/munge /var/lib/munge
  if [[ ! -s /etc/munge/munge.key ]]; then
    (umask 077 && head -c 1024 /dev/urandom > /etc/munge/munge.key)
    chown munge: /etc/munge/munge.key
  fi
  daemon munged setpriv --reuid=munge --regid=munge --clear-groups munged --foreground
  until_works 20 munge --no-input
}

sql() { mariadb --no-defaults --socket="$LAB/database/socket" --execute "$1"; }

start_database() {
  chown mysql: "$LAB/database"
  if [[ ! -d $LAB/database/mysql ]]; then
    mariadb-install-db --no-defaults --user=mysql --datadir="$LAB/database" \
      --auth-root-authentication-method=socket --skip-test-db > "$LAB/log/database.out" 2>&1
  fi
  daemon mariadbd mariadbd --no-defaults --user=mysql --datadir="$LAB/database" \
    --socket="$LAB/database/socket" --pid-file="$LAB/database/pid" --port=13406 \
    --bind-address=127.0.0.1 --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=2
  until_works 60 sql 'select 1'
  sql "create database if not exists slurm_accounting"
  local from
  for from in localhost 127.0.0.1; do
    sql "create user if not exists slurm@'$from' identified by 'slurm';
         grant all on slurm_accounting.* to slurm@'$from'"
  done
}

start_accounting() {
  daemon slurmdbd slurmdbd -D
  until_works 60 sacctmgr --noheader list cluster
  # each of these fails where it was done before
  sacctmgr --immediate --quiet add cluster kdlab > /dev/null || true
  sacctmgr --immediate --quiet add account kd Cluster=kdlab > /dev/null || true
  sacctmgr --immediate --quiet add user root Account=kd DefaultAccount=kd > /dev/null || true
  sacctmgr --immediate --quiet modify user root set DefaultAccount=kd > /dev/null || true
}

start_node() {
  mkdir -p "$LAB/spool/n$1"
  daemon "slurmd-n$1" slurmd -D -N "n$1"
}

all_up() {
  # a node that was drained once stays so, over restarts too
  scontrol update "nodename=n[1-$NODES]" state=resume > /dev/null 2>&1 || true
  (($(sinfo --noheader --Node --partition=cpu --format=%t | grep -cxE 'idle|mix|alloc') == NODES))
}

start() {
  install
  mkdir -p "$LAB"/{pid,run,controller,spool,database,dev}
  write_configuration
  start_munge
  start_database
  start_accounting
  daemon slurmctld slurmctld -D -i
  until_works 30 scontrol ping
  local node
  for ((node = 1; node <= NODES; node++)); do start_node "$node"; done
  until_works 60 all_up
}

stop() {
  if alive slurmctld; then scancel --user=root > /dev/null 2>&1 || true; fi
  local node name
  for ((node = 1; node <= NODES; node++)); do end "slurmd-n$node"; done
  for name in slurmctld slurmdbd mariadbd munged; do end "$name"; done
}

purge() {
  stop
  if [[ -s $LAB/installed ]]; then
    local packages
    mapfile -t packages < "$LAB/installed"
    DEBIAN_FRONTEND=noninteractive apt-get -qq purge --yes --auto-remove "${packages[@]}" \
      > /dev/null 2>&1 < /dev/null || echo "lab: some packages could not be removed" >&2
  fi
  if grep -qs '^ClusterName=kdlab$' /etc/slurm/slurm.conf; then
    rm -f /etc/slurm/{slurm,gres,cgroup,slurmdbd}.conf
  fi
  rm -rf "$LAB"
}

status() {
  local file
  for file in "$LAB"/pid/*; do
    [[ -e $file ]] || continue
    alive "${file##*/}" && echo "${file##*/} up" || echo "${file##*/} down"
  done
  sinfo --Node --format='%N %P %t %c %m %G'
}

case ${1:-} in
  install | start | stop | purge | status) "$1" ;;
  kill-node) end "slurmd-n$2" KILL ;;
  start-node) start_node "$2" ;;
  *)
    sed -n '2,5p' "$0" >&2
    exit 2
    ;;
esac
