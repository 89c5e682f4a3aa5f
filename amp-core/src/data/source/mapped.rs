use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Maps a file into memory and returns its bytes. A byte is read from the file when it is first
/// used. Processes that map the same file share the memory. The file must not change while it is
/// mapped.
pub(super) fn bytes(path: &Path) -> Result<Tensor> {
    let length = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    let refused = |why: &str| Error::config(format!("{}: {why}", path.display()));
    if length == 0 {
        return Err(refused("the file is empty: write it again"));
    }
    let Some(name) = path.to_str() else {
        return Err(refused(
            "the path is not UTF-8, which libtorch requires to map a file: rename the file",
        ));
    };
    let size = i64::try_from(length).map_err(|_| refused("the file is too large to be mapped"))?;
    // The mapping is private, so that writes to the tensor do not change the file.
    Tensor::f_from_file(name, false, size, (Kind::Uint8, Device::Cpu))
        .map_err(|error| refused(&Error::from(error).to_string()))
}
