// Loads a program that is built as a library, with all it needs, as Python loads its modules: out of
// anybody else's sight. This program itself needs nothing but the C library.
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char** arguments) {
    void* library = count > 1 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    void* entry = library != nullptr ? dlsym(library, "main") : nullptr;
    if (entry == nullptr) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    return reinterpret_cast<int (*)(int, char**)>(entry)(count - 1, arguments + 1);
}
