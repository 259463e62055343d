#!/usr/bin/env bash
# tests/gpio.rs on a card: the driver of ACCES' PCI-IDIO-16 (16 isolated outputs, 16 inputs) on the memory of
# an emulated NVMe controller, whose BAR2 stands for the card's registers. The kernel's driver, its character
# device and the daemon's code are the real ones; `devmem` looks at the outputs and moves the inputs.
# What it said when it last ran is in gpio.outcome.txt. Not part of the gate: needs about a minute.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/qemu/guest.sh

binary=${1:-$(cargo test --locked --test gpio --no-run --message-format=json |
    sed -nE 's/.*"executable":"([^"]+)".*/\1/p' | tail -n 1)}
guest_kernel
guest_root gpio gpio-pci-idio-16 <<'END'
echo "1b36 0010" >/sys/bus/pci/drivers/pci-idio-16/new_id
device=$(echo /sys/bus/pci/drivers/pci-idio-16/0000:*)
# The third line: BAR2.
export INSPECTD_GPIO_BAR=$(sed -n 3p $device/resource | cut -d ' ' -f 1)
export INSPECTD_GPIO_CHIP=/dev/gpiochip0
echo "guest: $(uname -r), $device, registers at $INSPECTD_GPIO_BAR, $(ls /dev/gpiochip*)"
gpio --test-threads 1 --nocapture && echo "guest: all well"
END
guest_program "$binary" gpio
guest_boot iomem=relaxed -drive if=none,id=card,file=null-co://,format=raw \
    -device nvme,drive=card,serial=1,cmb_size_mb=1,legacy-cmb=on | tr -d '\r' | tee "$guest/gpio.log"
grep -q "guest: all well" "$guest/gpio.log"
