//! One attribute, for the methods that Python calls.
//!
//! PyO3 makes a `PanicException` of a panic, which is no `Exception`: it would pass through whoever guards himself
//! against errors, and end the server for what concerns one connection.  Here every method of a block has its body run
//! inside of `crate::python::unpanicked`, which makes an `InternalError` of a panic, so that none can be forgotten.

use proc_macro::TokenStream;
use quote::quote;
use syn::{ImplItem, ItemImpl, ReturnType, Type, Visibility, parse_macro_input, parse_quote};

/// Shield all methods of a `#[pymethods]` block; to be written above it.
///
/// A method that gives no `PyResult` is made to, unless Rust uses it too (it is `pub`), or the collector does: these
/// must not panic.
#[proc_macro_attribute]
pub fn shielded(_arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut block = parse_macro_input!(item as ItemImpl);
    for item in &mut block.items {
        let ImplItem::Fn(method) = item else { continue };
        if ["__traverse__", "__clear__"].iter().any(|name| method.sig.ident == name) {
            continue;
        }
        let body = &method.block;
        let given: Type = match &method.sig.output {
            ReturnType::Default => parse_quote!(()),
            ReturnType::Type(_, given) => (**given).clone(),
        };
        if is_result(&given) {
            method.block = parse_quote!({ crate::python::unpanicked(move || -> #given #body) });
        } else if matches!(method.vis, Visibility::Inherited) {
            method.block = parse_quote!({
                crate::python::unpanicked(move || -> ::pyo3::PyResult<#given> { Ok((move || -> #given #body)()) })
            });
            method.sig.output = parse_quote!(-> ::pyo3::PyResult<#given>);
        }
    }
    quote!(#block).into()
}

fn is_result(given: &Type) -> bool {
    matches!(given, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "PyResult"))
}
