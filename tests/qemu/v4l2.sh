#!/usr/bin/env bash
# The v4l2 camera against the kernel's test driver vivid, in a virtual machine. Not part of the gate, since it
# fetches a kernel.
#
#   tests/qemu/v4l2.sh [filter of tests]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/qemu/guest.sh

guest_needs v4l2-ctl v4l-utils
program=${INSPECTD_QEMU_PROGRAM:-$(guest_test qemu)}
guest_kernel
# node_types=1: a capture node only; input_types=0: a webcam, whose sizes and rates are a list.
module_options="n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0 vid_cap_nr=0"
guest_root v4l2 vivid <<'END'
export INSPECTD_VIVID=/dev/video0
vivid-tests --test-threads=1 --nocapture $(cat /filter)
END
printf '%s' "$*" >"$root/filter"
guest_program "$program" vivid-tests
guest_program "$(command -v v4l2-ctl)" v4l2-ctl
guest_run
