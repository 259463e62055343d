#!/usr/bin/env bash
# tests/gpio.rs on a card: the driver of ACCES' PCI-IDIO-16 (16 isolated outputs, 16 inputs) on the memory of
# an emulated NVMe controller, whose BAR2 stands for the card's registers. The kernel's driver, its character
# device and the daemon's code are the real ones; `devmem` looks at the outputs and moves the inputs.
# What it said when it last ran is in gpio.outcome.txt. Not part of the gate, since it fetches a kernel.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/qemu/guest.sh

guest_needs
program=${INSPECTD_QEMU_PROGRAM:-$(guest_test gpio)}
guest_kernel
guest_root gpio gpio-pci-idio-16 <<'END'
echo "1b36 0010" >/sys/bus/pci/drivers/pci-idio-16/new_id
device=$(echo /sys/bus/pci/drivers/pci-idio-16/0000:*)
# The third line: BAR2.
export INSPECTD_GPIO_BAR=$(sed -n 3p $device/resource | cut -d ' ' -f 1)
export INSPECTD_GPIO_CHIP=/dev/gpiochip0
echo "guest: $device, registers at $INSPECTD_GPIO_BAR, $(ls /dev/gpiochip*)"
gpio-tests --test-threads=1 --nocapture
END
guest_program "$program" gpio-tests
guest_run --append iomem=relaxed -drive if=none,id=card,file=null-co://,format=raw \
    -device nvme,drive=card,serial=1,cmb_size_mb=1,legacy-cmb=on
