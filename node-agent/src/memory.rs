//! Gives memory back that was needed only for a moment.

/// Returns free pages to the system. Reading the kernel's type information takes some 20 MB for a blink, which glibc
/// keeps otherwise; other allocators look after themselves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time by any thread (malloc_trim(3)); it touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
