//! Checks the free space before a long download.

use std::path::Path;
use std::process::Command;

/// Returns the free space for this user on the disk of `folder` in MB, or `None` if `df` fails.
pub(super) fn free_mb(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// Reads the free space from the last line of the output of `df`: `filesystem blocks used available
/// capacity% mount`. The names of the file system and of the mount may contain spaces.
fn parse(table: &str) -> Option<u64> {
    let fields: Vec<&str> = table.lines().last()?.split_whitespace().collect();
    let capacity = fields.iter().rposition(|field| field.ends_with('%'))?;
    let available: u64 = fields.get(capacity.checked_sub(1)?)?.parse().ok()?;
    Some(available * 1024 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_available_column_is_found_beside_the_capacity() {
        let head = "Filesystem 1024-blocks Used Available Capacity Mounted on\n";
        assert_eq!(parse(&format!("{head}/dev/vda 100 1 9765625 1% /")), Some(10_000));
        assert_eq!(parse(&format!("{head}my 5% disk 100 1 9765625 1% /a b")), Some(10_000));
        assert_eq!(parse(head), None);
        assert_eq!(parse(""), None);
    }
}
