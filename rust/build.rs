//! Says whether the interpreter has a global lock: see `python/cell.rs`.

fn main() {
    #[cfg(feature = "python")]
    pyo3_build_config::use_pyo3_cfgs();
}
