# usage: life.sh PACKAGE PROGRAM...
# Run by sh in a clean Debian 12 with man-db, zsh, fish and systemd: installs /tmp/PACKAGE_*.deb, looks
# at what a user would, removes it.
set -eu
package=$1
shift
fail() { echo "$*"; exit 1; }
must() { "$@" >/tmp/said 2>&1 || { cat /tmp/said; fail "failed: $*"; }; }
everything() {
	find /usr /etc /var/lib /opt -xdev ! -path '/var/lib/dpkg/*' ! -path '/var/lib/apt/*' | sort
}

# What a press of the tabulator key offers.
offers() {
	bash -c '
		. /usr/share/bash-completion/completions/$1
		function=$(complete -p $1 | sed "s/.* -F \([^ ]*\).*/\1/")
		COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
		"$function" "$1" "${@: -1}" "${@: -2:1}"
		echo "${COMPREPLY[@]}"' bash "$@"
}
expect() {
	wanted=$1
	shift
	offered=$(offers "$@")
	[ "$offered" = "$wanted" ] || fail "\"$*\" completes to \"$offered\", not \"$wanted\""
}

# zsh and fish find what is installed by themselves.
found() {
	zsh -fc "autoload -U compinit; compinit -D -u; [ \"\$_comps[$1]\" = _$1 ]" ||
		fail "zsh knows no completion of $1"
	fish -c "complete -C '$1 --vers'" | grep -q '^--version' ||
		fail "fish knows no completion of $1"
}

everything >/tmp/before
must dpkg -i /tmp/"$package"_*.deb
must dpkg --verify "$package"

for program; do
	must "$program" --version
	must "$program" --help
	for page in /usr/share/man/man1/"$program"*.gz; do
		must man --warnings "$(basename "$page" .1.gz)"
	done
	found "$program"
	case $program in
	cloud-hypervisor)
		expect --initramfs cloud-hypervisor --initr
		;;
	ch-remote)
		expect remove-device ch-remote remove-d
		expect --format ch-remote exit-stats --form
		expect openmetrics ch-remote exit-stats --format o
		expect --until-shutdown ch-remote exit-stats record --until
		;;
	exit-stats)
		expect cycles exit-stats --sort c
		;;
	esac
done

units=$(dpkg -L "$package" | grep '\.service$' || true)
for unit in $units; do
	must systemd-analyze verify "$unit"
	# It warns without failing.
	[ ! -s /tmp/said ] || fail "systemd says of $unit: $(cat /tmp/said)"
done
case $package in
kvm-exit-stats-vmm)
	[ -n "$units" ] || fail "there are no units"
	id -nG cloud-hypervisor | grep -qw kvm || fail "the VMs' user is not in group kvm"
	id -nG cloud-hypervisor | grep -qw vm-stats || fail "the VMs' user is not in group vm-stats"
	[ "$(stat -c '%U %G %a' /run/vms)" = "cloud-hypervisor vm-stats 750" ] ||
		fail "/run/vms is not as it should be: $(stat -c '%U %G %a' /run/vms)"
	systemd-analyze security --offline=true --threshold=20 kvm-exit-stats-exporter.service >/tmp/said 2>&1 ||
		fail "the exporter may do too much: $(tail -1 /tmp/said)"
	;;
esac

must dpkg --purge "$package"
everything >/tmp/after
diff /tmp/before /tmp/after || fail "Removal leaves another system than it was"
echo "@life done"
