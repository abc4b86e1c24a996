#!/usr/bin/env bash
# What the tests on several hosts need besides Python: Debian's packages, as far as they are missing.
# No service of theirs is left running; the tests start their own, on hosts of their own.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
declare -A package=(
  [sshd]=openssh-server [ssh]=openssh-client [pdsh]=pdsh [ip]=iproute2 [unshare]=util-linux
  [mpirun]=openmpi-bin [slurmctld]=slurm-wlm [slurmd]=slurm-wlm [munged]=munge
)
missing=()
for tool in "${!package[@]}"; do
  command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "the tests on several hosts need root and these packages of Debian: ${missing[*]}" >&2
  exit 1
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  # By this the packages' scripts are told to start nothing.
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
