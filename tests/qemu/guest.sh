# To be sourced: a virtual machine with Debian's kernel, for devices that the machine at hand has not.
# Emulated throughout, so that it runs anywhere; needs qemu-system-x86_64, a static busybox, cpio and kmod.
# All it makes lies under $guest (target/qemu); a kernel package unpacked elsewhere is used where
# INSPECTD_QEMU_KERNEL names its folder.

kernel=6.1.0-56-amd64
guest=$(realpath -m "${CARGO_TARGET_DIR:-target}")/qemu

# The kernel's package from Debian's archive, unpacked and not installed.
guest_kernel() {
    unpacked=${INSPECTD_QEMU_KERNEL:-$guest/kernel}
    mkdir -p "$guest"
    if [ ! -e "$unpacked/boot/vmlinuz-$kernel" ]; then
        (cd "$guest" && apt-get download "linux-image-$kernel")
        dpkg-deb -x "$guest"/linux-image-"$kernel"_*.deb "$unpacked"
    fi
    [ -e "$unpacked/lib/modules/$kernel/modules.dep" ] || depmod -b "$unpacked" "$kernel"
}

# A root file system of a name: busybox, these modules in the order they need, and ./init from stdin.
guest_root() {
    root=$guest/$1
    shift
    rm -rf "$root"
    mkdir -p "$root"/{bin,proc,sys,dev,tmp,modules}
    cp "$(command -v busybox)" "$root/bin/busybox"
    "$root/bin/busybox" --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    local module file count=100
    for module in "$@"; do
        modprobe -d "$unpacked" -S "$kernel" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
        count=$((count + 1))
        cp "$file" "$root/modules/$count-$(basename "$file")"
    done
    {
        echo '#!/bin/sh'
        echo 'mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev'
        echo 'for module in /modules/*; do insmod $module; done'
        cat
        echo 'poweroff -f'
    } >"$root/init"
    chmod +x "$root/init"
}

# A program, and the libraries that it asks for.
guest_program() {
    cp "$1" "$root/bin/$2"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -Lu "$library" "$root$library"
    done
}

# Boots it; what it says goes to stdout. Kernel arguments first, then those of qemu.
guest_boot() {
    local append=$1
    shift
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$root.cpio.gz"
    timeout 300 qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 512 -nographic -no-reboot \
        -nodefaults -serial stdio -kernel "$unpacked/boot/vmlinuz-$kernel" -initrd "$root.cpio.gz" \
        -append "console=ttyS0 quiet panic=-1 $append" "$@"
}
